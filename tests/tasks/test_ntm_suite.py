"""The five tasks over bits: what each asks for, and what solvers that lack something get."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.associative_recall import AssociativeRecall
from memjax.tasks.copying import Copy
from memjax.tasks.ngrams import NGrams
from memjax.tasks.priority_sort import STEPS, PrioritySort
from memjax.tasks.repeat_copy import RepeatCopy
from memjax.tasks.task import TRAIN, acc_by
from memjax.tasks.vectors import majority
from tests.registry.tasks.ntm import SMALL

ROWS = 400


@functools.cache
def made(task):
  """400 examples as numpy arrays, and the oracle's answers."""

  @jax.jit
  def run():
    batch = task.sample(0, TRAIN, jnp.arange(ROWS))
    return batch, task.solve(batch)

  return jax.tree.map(np.asarray, run())


def solved(task, inputs):
  """The oracle's answers to other inputs, `[B, T, outputs_size]`."""
  lengths = jnp.full(len(inputs), inputs.shape[1])
  return np.asarray(jax.jit(jax.vmap(task.oracle))(inputs, lengths))


def commoner(vectors):
  """The bit that most of the vectors have, in each channel; 1 where they are even."""
  return (vectors.mean(axis=0) >= 0.5).astype(np.float32)


def share_right(said, batch):
  return (said == batch.targets)[batch.mask].mean()


def test_copies_in_another_order_are_due_in_it():
  task = SMALL["copy"]
  batch, _ = made(task)
  n = batch.inputs[:, :, 3].argmax(axis=1)
  assert set(n) == {2, 3, 4, 5}
  rows = batch.inputs.copy()
  for row, k in zip(rows, n, strict=True):
    row[:k] = row[:k][::-1]
  turned = solved(task, rows)
  for row, target, k in zip(turned, batch.targets, n, strict=True):
    np.testing.assert_array_equal(row[k + 1 : 2 * k + 1], target[k + 1 : 2 * k + 1][::-1])
  said = np.zeros_like(batch.targets)
  for row, shown, k in zip(said, batch.inputs, n, strict=True):
    row[k + 1 : 2 * k + 1] = commoner(shown[:k, :3])
  assert share_right(said, batch) == pytest.approx(task.floor, abs=0.02)


def test_to_keep_two_vectors_costs_a_bit_for_each_bit_of_the_others():
  task = SMALL["copy"]
  batch, _ = made(task)
  n = (batch.length - 1) // 2
  kept = batch.meta["place"] < 2
  logits = np.where(kept[:, :, None], 99 * (2 * batch.targets - 1), 0)
  found = jax.jit(task.score)(logits, batch)
  assert found["cost"] == pytest.approx(3 * (n - 2).mean(), rel=1e-6)
  # A vector that is left out shifts the rest; wrong bits are then a block from its place on.
  shifted = np.where(kept[:, :, None], batch.targets, np.roll(batch.targets, -1, axis=1))
  by = acc_by(jnp.asarray(shifted), jax.tree.map(jnp.asarray, batch), "place")
  assert by[0][0] == by[1][0] == 1 and all(by[place][0] < 0.7 for place in (2, 3))


def test_the_count_is_coded_as_in_training():
  rounds = {code: RepeatCopy(2, 2, 5, 5, 3, code) for code in ("zscore", "over_max")}
  shown = {code: made(task)[0].inputs[:, 3, 4] for code, task in rounds.items()}
  np.testing.assert_allclose(shown["zscore"], (5 - 5.5) / 8.25**0.5, rtol=1e-6)
  np.testing.assert_allclose(shown["over_max"], 0.5)
  for code, task in rounds.items():
    batch, found = made(task)
    assert (batch.length == 15).all(), code
    np.testing.assert_array_equal(found, batch.targets)
  with pytest.raises(ValueError, match=r"trained=\(1, 3\) shows r=2 as 0"):
    RepeatCopy(most=3, trained=(1, 3))
  RepeatCopy(most=3, trained=(1, 3), count_code="over_max")
  with pytest.raises(ValueError, match="fewest=4 must not exceed most=3"):
    RepeatCopy(fewest=4, most=3)


def test_losing_the_count_and_losing_the_vectors_are_told_apart():
  task = SMALL["repeat-copy"]
  batch, _ = made(task)
  score = jax.jit(task.score)
  sure = 2 * (2 * batch.targets - 1)
  whole = score(sure, batch)
  frames = batch.mask.sum(axis=1).mean()
  assert whole["data_cost"] + whole["end_cost"] == pytest.approx(float(whole["cost"]), rel=1e-5)
  # The same a bit, however often the vectors are due.
  each = np.log2(1 + np.exp(-2))
  assert whole["data_cost"] == pytest.approx(3 * frames * each, rel=1e-5)
  no_end = sure.copy()
  no_end[..., 3] = -2
  lost = score(no_end, batch)
  assert lost["end_wrong"] == 1 and lost["data_wrong"] == 0 and lost["em"] == 0
  assert lost["wrong"] == 1
  blank = np.where(np.arange(4) < 3, -2, sure)
  lost = score(blank, batch)
  assert lost["end_wrong"] == 0 and lost["data_wrong"] > 2
  assert (blank[..., :3] > 0).sum() == 0
  both = np.minimum(blank, no_end)
  assert score(both, batch)["acc"] == pytest.approx(task.chance, abs=0.02)
  by = batch.meta["repeat"][batch.mask & (batch.targets[..., 3] == 1)]
  np.testing.assert_array_equal(by, batch.meta["repeats"])


def test_the_asked_item_is_not_the_last_and_no_two_are_equal():
  task = SMALL["associative-recall"]
  batch, _ = made(task)
  said, rows = np.zeros_like(batch.targets), batch.inputs.copy()
  cases = set()
  for row, new, out in zip(batch.inputs, rows, said, strict=True):
    m = int(row[:, 3].sum())
    items = row[: 3 * m].reshape(m, 3, 5)[:, 1:, :3]
    assert len({item.tobytes() for item in items}) == m
    query = row[3 * m + 1 : 3 * m + 3, :3]
    (asked,) = np.flatnonzero((items == query).all(axis=(1, 2)))
    cases.add((m, int(asked)))
    may = [i for i in range(1, m) if i != asked]
    out[3 * m + 4 : 3 * m + 6] = commoner(items[may])
    if asked == 0 and m == 4:  # the pair that counts stays together
      new[: 3 * m] = row[: 3 * m].reshape(m, 3, 5)[[3, 0, 1, 2]].reshape(-1, 5)
  assert cases == {(m, i) for m in (2, 3, 4) for i in range(m - 1)}
  assert (rows != batch.inputs).any()
  np.testing.assert_array_equal(solved(task, rows), batch.targets)
  assert share_right(said, batch) == pytest.approx(task.floor, abs=0.03)


def test_many_and_wide_items():
  batch, found = made(AssociativeRecall(fewest=20, most=20, vectors=4, bits=9))
  np.testing.assert_array_equal(found, batch.targets)
  shown = batch.inputs[:, :, :9][(batch.inputs[:, :, 9:].sum(-1) == 0)]
  assert shown[:, 3:].mean(axis=0).max() < 0.52  # every bit of every item is drawn
  with pytest.raises(ValueError, match="vectors=1 of bits=2 cannot differ in 5"):
    AssociativeRecall(most=5, vectors=1, bits=2)


def test_priorities_differ_and_the_order_of_the_vectors_does_not_matter():
  task = PrioritySort(vectors=20, due=16, bits=3)
  batch, _ = made(task)
  priority = batch.inputs[:, :20, 3]
  assert all(len(set(row)) == 20 for row in priority)
  assert np.abs(priority).max() < 1 and abs(priority.mean()) < 0.03
  assert priority.std() == pytest.approx(3**-0.5, abs=0.01)
  np.testing.assert_array_equal(priority * STEPS, np.round(priority * STEPS))
  rows = batch.inputs.copy()
  rows[:, :20] = rows[:, np.random.default_rng(0).permutation(20)]
  np.testing.assert_array_equal(solved(task, rows), batch.targets)
  said = np.stack([np.tile(commoner(row[21:]), (37, 1)) for row in batch.targets])
  assert share_right(said, batch) == pytest.approx(majority(16), abs=0.01)


@functools.cache
def counted(task):
  """Chances of a 1, `[B, T]`, by a table of counts filled bit by bit, and how often each context
  was seen."""
  bits = np.concatenate([made(task)[0].inputs[:, :, 0], made(task)[0].targets[:, -1:, 0]], axis=1)
  chances, seen = np.zeros((2, ROWS, task.length - 1))
  for row in range(ROWS):
    table = {}
    for t in range(task.context, task.length):
      zeros, ones = table.get(key := tuple(bits[row, t - task.context : t]), (0, 0))
      chances[row, t - 1], seen[row, t - 1] = (ones + 0.5) / (zeros + ones + 1), zeros + ones
      table[key] = (zeros + 1, ones) if bits[row, t] == 0 else (zeros, ones + 1)
  return chances, seen


def test_the_oracle_of_ngrams_counts_and_nothing_costs_less():
  task = NGrams(length=120, context=3)
  batch, found = made(task)
  chances, seen = counted(task)
  np.testing.assert_allclose(found[..., 0], chances, rtol=1e-6)
  np.testing.assert_array_equal(batch.meta["seen"], seen)
  excess = jax.jit(task.excess)
  logit = lambda p: (np.log(p) - np.log1p(-p))[..., None]  # noqa: E731
  table = np.where(batch.mask, chances, 0.5)
  np.testing.assert_allclose(excess(logit(table), batch), 0, atol=1e-3)
  for other in (0.9 * table + 0.05, np.clip(1.1 * table - 0.05, 0.005, 0.995), 0 * table + 0.5):
    more = np.asarray(excess(logit(other), batch))
    assert more.mean() > 3 * more.std() / ROWS**0.5
  # More counts, better told: later bits are cheaper, the same table in longer sequences cheaper.
  bits = -np.log2(np.where(batch.targets[..., 0] == 1, table, 1 - table))
  assert bits[:, 2:12].mean() > bits[:, 20:40].mean() + 0.05 > bits[:, 80:].mean() + 0.07


def test_the_chances_of_ngrams_are_beta_and_counting_ones_is_the_floor():
  task = NGrams(length=120, context=3)
  batch, _ = made(task)
  bits = batch.inputs[..., 0]
  code = np.stack([bits[:, 2:-1], bits[:, 1:-2], bits[:, :-3]], axis=-1) @ [1, 2, 4]
  after = bits[:, 3:]
  share = np.asarray([
    [row[c == k].mean() if (c == k).sum() >= 12 else np.nan for k in range(8)]
    for row, c in zip(after, code, strict=True)
  ])  # fmt: skip
  share = share[~np.isnan(share)]
  assert share.mean() == pytest.approx(0.5, abs=0.03)
  assert share.var() == pytest.approx(1 / 8, abs=0.03)  # and 1 / 12 if chances were even
  ones = np.cumsum(bits, axis=1)
  said = (ones > np.arange(1, 120) / 2).astype(np.float32)[..., None]
  assert share_right(said, batch) == pytest.approx(task.floor, abs=0.01)
  with pytest.raises(ValueError, match="length=3 must exceed context=3"):
    NGrams(length=3, context=3)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="shortest=3 must not exceed longest=2"):
    Copy(shortest=3, longest=2)
  with pytest.raises(ValueError, match=r"trained=\(0, 3\) must be the least"):
    RepeatCopy(trained=(0, 3))
  with pytest.raises(ValueError, match=r"due=6 must lie in 1\.\.vectors=5"):
    PrioritySort(vectors=5, due=6)
  with pytest.raises(ValueError, match="fewest=1, most=3 must satisfy"):
    AssociativeRecall(fewest=1, most=3)
