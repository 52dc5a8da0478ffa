"""RMT's tasks: where facts stand, what the text is, and that any stretch of it can be made."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.segment_facts import MODES, TEXT, SegmentFacts
from memjax.tasks.task import TRAIN
from tests.registry.tasks.babi import SMALL

MANY = jnp.arange(400)
REASON = SMALL["facts-reason"]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/tasks"


def golden(name):
  return {k: np.asarray(v) for k, v in json.loads((GOLDEN / f"{name}.json").read_text()).items()}


@functools.cache
def pieces(task):
  """All of the examples, in pieces of a length that no segment has."""
  size = task.length // 4
  make = jax.jit(lambda start: task.chunk(0, TRAIN, MANY, start, size))
  parts = [make(start) for start in range(0, task.length, size)]
  whole = {
    name: np.concatenate([getattr(part, name) for part in parts], axis=1)
    for name in ("inputs", "targets", "mask")
  }
  meta = {name: np.concatenate([part.meta[name] for part in parts], axis=1) for name in ("back",)}
  return dataclasses.replace(parts[0], **whole, meta=meta)


def test_pieces_are_the_example_and_text_follows_its_table():
  task = REASON
  batch = pieces(task)
  whole = golden("facts-reason")
  np.testing.assert_array_equal(batch.inputs[:2], whole["inputs"])
  np.testing.assert_array_equal(batch.targets[:2], whole["targets"])
  ids = batch.inputs.reshape(-1)
  text = ids >= task.lexicon.size
  assert set(ids[text]) == set(range(task.lexicon.size, task.lexicon.size + TEXT))
  # Each two ids have few followers: of all that stand behind one pair, far fewer are different.
  run = text[:-2] & text[1:-1] & text[2:] & (np.arange(len(ids) - 2) % task.segment < 22)
  before = ids[:-2][run] * 1000 + ids[1:-1][run]
  followers = [set(ids[2:][run][before == pair]) for pair in np.unique(before)[:300]]
  assert max(map(len, followers)) <= 16


def test_reasons_are_two_facts_of_drawn_segments_and_one_way_to_answer():
  task = REASON
  batch = pieces(task)
  ways = [task.lexicon.ids[way] for way in ("north", "south", "east", "west")]
  is_way = np.isin(batch.inputs, ways)
  assert (is_way.sum(axis=1) == 3).all()
  facts = np.stack([np.flatnonzero(row)[:2] for row in is_way])
  # "the L is way": at a segment's start, or behind the other fact.
  assert set(np.unique(facts % task.segment)) == {3, 3 + 8}
  starts = facts // task.segment
  assert np.bincount(starts.reshape(-1), minlength=3).min() > 180
  asked = batch.inputs[:, -7:]
  backward = asked[:, 3] != task.lexicon.ids["of"]
  assert 140 < backward.sum() < 260
  # Who takes a fact's first location, but not the one named, is as good as the floor says.
  firsts = np.take_along_axis(batch.inputs, facts - 2, axis=1)
  named = np.where(backward, asked[:, 3], asked[:, 5])
  answer = batch.targets[:, -1]
  sure = (firsts == named[:, None]).any(axis=1) | (firsts[:, 0] == firsts[:, 1])
  assert (firsts == answer[:, None]).any(axis=1).all()
  assert np.where(sure, 1, 0.5).mean() == pytest.approx(task.floor, abs=4 * 0.25 / 20)


def places(mode, **settings):
  """Where the fact begins in each of many examples."""
  task = SegmentFacts(mode=mode, **settings)
  lengths = jnp.full(task.told, 6)
  draw = jax.vmap(lambda key: task._places(key, lengths))
  return task, np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), 2000)))


def test_facts_begin_where_the_mode_says():
  _, start = places("start", facts=3)
  assert (start == [[0, 6, 12]]).all()
  task, drawn = places("segment_start", segments=5)
  assert (drawn % task.segment == 0).all()
  counts = np.bincount(drawn[:, 0] // task.segment, minlength=5)
  assert np.abs(counts - 400).max() < 5 * 400**0.5
  task, anywhere = places("anywhere", segments=5)
  assert anywhere.min() >= 0 and anywhere.max() <= task.length - 4 - 6
  counts = np.histogram(anywhere, 10, (0, task.length - 9))[0]
  assert np.sum((counts - 200) ** 2 / 200) < 27.9  # chi-square of 9 degrees, 1 in 1,000


def test_the_location_told_is_the_answer():
  task = SMALL["facts-anywhere"]
  first, examples = task.lexicon.first[2], golden("facts-anywhere")
  for ids, targets in zip(examples["inputs"], examples["targets"], strict=True):
    told = np.flatnonzero(ids[:-4] == ids[-2])
    place = told[0] + np.flatnonzero((ids[told[0] :] >= first) & (ids[told[0] :] < first + 6))[0]
    assert len(told) == 1 and ids[place] == targets[-1]
    ids[place] = other = first + (ids[place] - first + 1) % 6
    assert task.oracle(jnp.asarray(ids), task.length)[-1] == other


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: SegmentFacts(mode="end"), "mode='end' is not one of " + ", ".join(map(repr, MODES))),
    (lambda: SegmentFacts(facts=5, segment=512), "facts=5 must be at most 4"),
    (lambda: SegmentFacts(mode="reason", facts=2), "facts=2 must be 1 in mode='reason'"),
    (lambda: SegmentFacts(segment=11), "segment=11 must be at least 12"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
