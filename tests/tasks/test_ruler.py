"""Needles with several values, variables and words: what each promises, and cheap solvers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import needle
from memjax.tasks.needle import Needle
from memjax.tasks.task import TRAIN, acc_by
from memjax.tasks.variables import SET, VariableTracking
from memjax.tasks.words import NOISE, CommonWords, FrequentWords, _zeta

ROWS = 300


@functools.cache
def made(task):
  """300 examples as numpy arrays."""
  return jax.tree.map(np.asarray, jax.jit(lambda: task.sample(0, TRAIN, jnp.arange(ROWS)))())


def answers(batch):
  """Targets that are due, `[B, n]`."""
  return batch.targets[batch.mask].reshape(ROWS, -1)


def test_all_values_of_a_key_are_due_in_the_order_told_whatever_its_rank():
  task = Needle(160, 4, 4, 2, None, "text", keys=8, values=20, vocab=50, times=3)
  batch, ranks = made(task), []
  for row, due, depth in zip(batch.inputs, answers(batch), batch.meta["depth"], strict=True):
    marks, asks = np.flatnonzero(row == needle.MARK), np.flatnonzero(row == needle.ASK)
    keys, asked = row[marks + 1], row[asks + 1]
    assert len(marks) == 12 and (np.unique(keys, return_counts=True)[1] == 3).all()
    assert sorted(asked) == sorted(set(keys))
    here = [marks[keys == key] for key in asked]
    told = [np.stack([row[at + 2], row[at + 3]], axis=1).ravel() for at in here]
    np.testing.assert_array_equal(due, np.concatenate(told))
    depths = [round(100 * at[0] / (task.told - task.size)) for at in here]
    np.testing.assert_array_equal(depth[asks], depths)
    ranks.append(np.argsort(np.argsort(depths))[0])
  assert np.bincount(ranks).min() > 40
  assert task.floor == pytest.approx((1 / 12 + 1 / 11 + 1 / 10) / 3)


def test_a_row_of_the_grid_has_trials_at_each_depth():
  task = Needle(length=54, keys=8, values=9, vocab=30)
  batch = jax.jit(lambda: task.grid(0, TRAIN, 4))()
  place = np.argmax(np.asarray(batch.inputs) == needle.MARK, axis=1)
  free = task.told - task.size
  expected = np.repeat(np.round(free * np.arange(0, 101, 5) / 100), 4)
  assert np.abs(place - expected).max() <= 1 and place[0] == 0 and place[-1] == free
  cells = acc_by(batch.targets, batch, "depth")
  assert cells == {depth: (1.0, 4) for depth in range(0, 101, 5)}
  assert len({row.tobytes() for row in np.asarray(batch.inputs)}) > 75
  with pytest.raises(ValueError, match="a grid is for needles=1, not 2"):
    Needle(needles=2).grid(0, TRAIN, 1)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_names_of_a_chain_are_due_and_only_shuffled_ones_need_a_second_pass(order):
  task = VariableTracking(60, 3, 3, order, keys=20, values=5, vocab=40)
  batch = made(task)
  if order == "shuffled":  # the other order is in the registry
    np.testing.assert_array_equal(jax.jit(task.solve)(batch), batch.targets)
  late, heads = 0, []
  for row, due in zip(batch.inputs, answers(batch), strict=True):
    at = np.flatnonzero(row == SET)
    pairs = {int(row[p + 1]): int(row[p + 2]) for p in at}
    assert len(pairs) == 12 and len(set(pairs.values())) == 12
    assert pairs[int(due[0])] == row[task.told + 1] and row[task.told] == 2
    assert all(pairs[int(b)] == a for a, b in zip(due[:-1], due[1:], strict=True))
    names = list(pairs)
    places = [names.index(int(name)) for name in due]
    late += any(a > b for a, b in zip(places[:-1], places[1:], strict=True))
    heads.append([names.index(name) for name, of in pairs.items() if of >= 3 + 20])
  if order == "sorted":
    assert late == 0 and (np.sort(heads, axis=1)[:, 1] < 4).mean() > 0.3  # chains interleave
  else:
    assert late > 250
  assert len(np.unique(batch.inputs[:, : task.told] == SET, axis=0)) > 290
  assert task.floor == pytest.approx((1 / 12 + 1 / 11 + 1 / 10 + 1 / 9) / 4)


def test_common_words_stand_often_and_the_next_new_word_is_the_floor():
  task = CommonWords(common=4, often=6, others=8, seldom=2, words=40)
  batch = made(task)
  right = 0
  for row, due in zip(batch.inputs[:, : task.told], answers(batch), strict=True):
    words, first, count = np.unique(row, return_index=True, return_counts=True)
    assert sorted(count) == [2] * 8 + [6] * 4
    order = words[np.argsort(first)]
    common = [w for w in order if w in words[count == 6]]
    np.testing.assert_array_equal(due, common)
    guess = [order[0], *(order[np.flatnonzero(order == w)[0] + 1] for w in common[:-1])]
    right += np.sum(guess == due)
  assert right / ROWS / 4 == pytest.approx(task.floor, abs=0.04)
  assert task.length == 40 + 4 and batch.inputs[0, 40] == 1


def test_frequent_words_stand_as_often_as_zeta_says():
  task = FrequentWords(listed=400, words=60)
  counts = [int(400 * 6 / np.pi**2 / k**2) for k in range(1, 16)]
  assert task.counts == tuple(counts) and counts[-1] == 1
  assert _zeta(3.0) == pytest.approx(1.2020569, abs=1e-6)
  batch = made(task)
  for row, due in zip(batch.inputs[:, : task.told], answers(batch), strict=True):
    found = np.bincount(row, minlength=64)
    assert found[NOISE] == counts[0] and sorted(found[found > 0], reverse=True) == counts
    np.testing.assert_array_equal(found[due], counts[1:4])
  # A word drawn from the list, of those that were not named and are not noise.
  draw, right = np.random.default_rng(0), 0
  for row, due in zip(batch.inputs[:, : task.told], answers(batch), strict=True):
    for rank, word in enumerate(due):
      left = row[(row != NOISE) & ~np.isin(row, due[:rank])]
      right += np.mean(draw.choice(left, 20) == word)
  assert right / ROWS / 3 == pytest.approx(task.floor, abs=0.02)


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: VariableTracking(length=20), "length=20 must be at least 21"),
    (lambda: VariableTracking(chains=2, values=1), "values=1 the chains"),
    (lambda: VariableTracking(vocab=1539), "vocab=1539 must exceed 3"),
    (lambda: CommonWords(often=3), "often=3 must exceed seldom=3"),
    (lambda: CommonWords(words=100), "words=100 must be at least common"),
    (lambda: FrequentWords(listed=20), r"the counts \(3, 1, 0\)"),
    (lambda: FrequentWords(alpha=1.0), "alpha=1.0 must exceed 1"),
    (lambda: FrequentWords(words=5), "words=5 must be at least 23"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
