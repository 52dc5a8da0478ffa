"""Stretches of long sequences: the tokens of the whole, at the cost of the stretch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import draw, stretches
from memjax.tasks.interference import Interference
from memjax.tasks.needle import Needle
from memjax.tasks.task import IGNORE, TRAIN
from memjax.tasks.variables import VariableTracking

SIZE, LONG = 100, 3_000_000
STREAMS = {
  "passkey": Needle(length=LONG, digits=3, keys=8, values=10, vocab=60),
  "interference": Interference(keys=5, updates=299_999, values=300_000, order="rounds"),
  "variables": VariableTracking(length=LONG, chains=3, keys=20, values=5, vocab=60),
}


def test_stretches_are_parts_of_the_whole():
  task = Needle(
    length=500, needles=3, times=2, queries=2, background="text", keys=8, values=9, vocab=60
  )
  index, starts = jnp.arange(3), (0, 233, 400)
  whole, parts = jax.jit(lambda: (
    task.sample(0, TRAIN, index),
    jax.lax.map(lambda start: task.chunk(0, TRAIN, index, start, SIZE), jnp.asarray(starts)),
  ))()  # fmt: skip
  for part, start in enumerate(starts):
    for name in ("inputs", "targets", "mask"):
      expected = getattr(whole, name)[:, start : start + SIZE]
      np.testing.assert_array_equal(getattr(parts, name)[part], expected)
    for key, value in whole.meta.items():
      np.testing.assert_array_equal(parts.meta[key][part], value[:, start : start + SIZE])
  assert (np.asarray(parts.length) == 500).all()


@functools.cache
def program(name):
  make = lambda start: STREAMS[name].chunk(0, TRAIN, jnp.arange(3), start, SIZE)  # noqa: E731
  return jax.jit(make).lower(jnp.int32(0)).compile()


@pytest.mark.parametrize("name", STREAMS)
def test_one_small_program_makes_any_stretch_of_millions(name):
  assert STREAMS[name].length == LONG
  make = program(name)
  memory = make.memory_analysis()
  assert memory and memory.temp_size_in_bytes < 300_000  # one whole row takes 12 MB
  for start in (0, 1_234_567, LONG - SIZE - 37):
    one, next_one = make(jnp.int32(start)), make(jnp.int32(start + 37))
    for a, b in ((one.inputs, next_one.inputs), (one.targets, next_one.targets)):
      np.testing.assert_array_equal(a[:, 37:], b[:, :-37])
    asked = np.asarray(next_one.mask).any(axis=1)
    assert asked.all() if start > 1_234_567 else not asked.any()


def test_the_last_of_many_values_is_due_at_the_end_of_a_stream():
  task, make = STREAMS["interference"], program("interference")
  late, end = make(jnp.int32(LONG - SIZE)), make(jnp.int32(2 * 5 * task.updates - SIZE))
  questions = np.asarray(late.inputs)[:, -9::2]
  for row, kinds, due in zip(np.asarray(end.inputs), questions, late.targets, strict=True):
    told = dict(zip(row[0::2].tolist(), row[1::2].tolist(), strict=True))
    assert [told[int(kind)] for kind in kinds] == [int(v) for v in due if v != IGNORE]


@functools.cache
def rounds():
  return np.asarray(jax.jit(jax.vmap(lambda k: draw.rounds(k, 3, 0, 40)))(
    jax.random.split(jax.random.key(0), 50)
  ))  # fmt: skip


def test_rounds_hold_each_kind_once_and_none_follows_itself():
  found = rounds()
  np.testing.assert_array_equal(np.sort(found, axis=2), np.broadcast_to(np.arange(3), found.shape))
  row = found.reshape(50, -1)
  assert (row[:, 1:] != row[:, :-1]).all()
  orders = np.unique(found.reshape(-1, 3), axis=0, return_counts=True)[1]
  assert len(orders) == 6 and orders.min() > 200
  with pytest.raises(ValueError, match="kinds=2 must be at least 3"):
    draw.rounds(jax.random.key(0), 2, 0, 1)


def test_numbers_of_a_stretch_are_those_of_the_row():
  key = jax.random.key(3)
  whole = np.asarray(jax.jit(lambda: stretches.integers(key, 0, 1000, 5, 9))())
  assert whole.min() == 5 and whole.max() == 8
  assert np.abs(np.bincount(whole)[5:] - 250).max() < 70
  part = jax.jit(lambda start: stretches.integers(key, start, 130, 5, 9))
  for start in (0, 1, 127, 128, 255, 870):
    np.testing.assert_array_equal(part(start), whole[start : start + 130])


def test_stretches_that_there_are_not_are_refused():
  with pytest.raises(ValueError, match=r"size=513 must lie in 1\.\.length=512"):
    Needle().chunk(0, TRAIN, jnp.arange(1), 0, 513)
  with pytest.raises(ValueError, match="order='mixed' is drawn whole"):
    Interference().stretch(jax.random.key(0), 0, 4)
