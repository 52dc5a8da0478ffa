"""Packed documents of numbered tokens (token i is i): a batch shows what was put where."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from memjax.core import segments
from memjax.data import pack, resample
from memjax.data.batches import Cut
from memjax.data.packing import best_fit
from memjax.transformer import Attention, LanguageModel, Stack
from tests.data.test_batches import assert_equal, corpus, numbered, take

SEPARATOR = 999


def cut(lengths, *, length, align=None, separator=None, seed=None, batch_size=2):
  return Cut(
    numbered(lengths), sequence_length=length, batch_size=batch_size, seed=seed, stream=False,
    pack=True, separator=separator, align=align, shard_index=0, shard_count=1,
  )  # fmt: skip


def epoch(cut):
  batches = [cut[k] for k in range(len(cut))]
  return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@hypothesis.given(
  sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), length=st.sampled_from([9, 12, 30])
)
def test_best_fit(sizes, length):
  row, begin = best_fit(np.asarray(sizes), length)
  used = np.zeros((row.max() + 1, length), int)
  for size, r, b in zip(sizes, row, begin, strict=True):
    assert b + size <= length
    used[r, b : b + size] += 1
  assert used.max() == 1 and used.any(axis=1).all()  # none overlap, no row is empty
  assert (2 * used.sum(axis=1) <= length).sum() <= 1  # two such rows would have been one


def test_best_fit_fills_the_fullest_row_that_fits():
  row, begin = best_fit(np.asarray([2, 7, 3, 6, 4]), 10)  # 7, 6, 4 with 6, 3 with 7, 2
  assert row.tolist() == [2, 0, 0, 1, 1] and begin.tolist() == [0, 0, 7, 0, 6]


@hypothesis.given(
  lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
  align=st.sampled_from([None, 2, 4]),
  separator=st.sampled_from([None, SEPARATOR]),
  seed=st.sampled_from([None, 3]),
)
def test_whole_documents(lengths, align, separator, seed):
  if separator is None and max(lengths) == 1:
    return
  made = cut(lengths, length=8, align=align, separator=separator, seed=seed)
  rows = epoch(made)
  count = made._rows  # shuffled rows of the next epoch may share the last batch
  inputs, targets, reset, valid = (
    rows[name][:count] for name in ("inputs", "targets", "reset", "valid")
  )
  starts = np.cumsum([0, *lengths])
  first, last = set(starts[:-1].tolist()), set((starts[1:] - 1).tolist())
  everyone = range(starts[-1])
  if separator is None:  # a document's first token is no target, its last no input
    assert sorted(inputs[valid]) == sorted(set(everyone) - last)
    assert sorted(targets[valid]) == sorted(set(everyone) - first)
  else:
    assert sorted(inputs[valid]) == list(everyone)
    ends = targets[valid] == SEPARATOR
    assert sorted(inputs[valid][ends]) == sorted(last)
  follows = (targets == inputs + 1) | (targets == (-1 if separator is None else separator))
  assert follows[valid].all()
  assert not inputs[~valid].any() and not targets[~valid].any() and not reset[~valid].any()
  document = np.searchsorted(starts, inputs, side="right")
  for r, t in zip(*np.nonzero(valid), strict=True):
    goes_on = t and valid[r, t - 1] and inputs[r, t] == inputs[r, t - 1] + 1
    goes_on = goes_on and document[r, t] == document[r, t - 1]
    assert reset[r, t] == (not goes_on)
    if reset[r, t]:
      offset = inputs[r, t] - starts[document[r, t] - 1]
      assert offset % 8 == 0  # the document's first token, or a row's that it filled
      assert t % (align or 1) == 0
  assert made.padding == pytest.approx(1 - valid.mean(), abs=1e-12)


def test_documents_that_fit_are_never_cut():
  lengths = [5, 1, 12, 8, 3, 13, 4, 7]
  rows = epoch(cut(lengths, length=12))
  starts = np.cumsum([0, *lengths])
  row_of = {}
  for r, t in zip(*np.nonzero(rows["valid"]), strict=True):
    document = int(np.searchsorted(starts, rows["inputs"][r, t], side="right"))
    row_of.setdefault(document, set()).add(r)
  assert len(row_of) == 7  # the one of one token holds nothing to predict
  assert all(len(rows) == 1 for rows in row_of.values())


def test_batches_are_a_function_of_their_number():
  batches = corpus().train_batches(12, 2, seed=5, pack=True)
  whole = take(batches, 9)
  batches.set_state({**batches.get_state(), "next_batch": 4})
  assert_equal(take(batches, 5), whole[4:])
  assert 0 < batches.padding < 0.5
  with pytest.raises(ValueError, match="pack=True then, None now"):
    corpus().train_batches(12, 2, seed=5).set_state(batches.get_state())
  other = corpus().train_batches(12, 2, seed=6, pack=True)
  assert any((a["inputs"] != b["inputs"]).any() for a, b in zip(whole, take(other, 9), strict=True))
  for each in (batches, other):
    each.close()
  halves = [
    corpus().train_batches(12, 2, seed=5, pack=True, shard_index=i, shard_count=2) for i in (0, 1)
  ]
  for batch in whole:
    parts = [next(half) for half in halves]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in batch}
    assert_equal([joined], [batch])
  for half in halves:
    half.close()


# Joined end to end.

DOCUMENTS = [np.arange(n) + 10 * (i + 1) for i, n in enumerate((4, 1, 6, 3))]


@pytest.mark.parametrize("mask", ["none", "segment"])
def test_joined_with_separators(mask):
  rows = pack(DOCUMENTS, 5, separator=SEPARATOR, mask=mask)
  text = [10, 11, 12, 13, 999, 20, 999, 30, 31, 32, 33, 34, 35, 999, 40, 41, 42]
  assert text.count(SEPARATOR) == len(DOCUMENTS) - 1
  valid, at = rows["valid"].reshape(-1), np.arange(20) < 16
  hidden = np.asarray(text) == SEPARATOR if mask == "segment" else np.zeros(17, bool)
  np.testing.assert_array_equal(valid[:16], ~hidden[:16])
  assert not valid[16:].any()
  for name, shift in (("inputs", 0), ("targets", 1)):
    got = rows[name].reshape(-1)
    np.testing.assert_array_equal(got[:16], np.where(valid[:16], text[shift : 16 + shift], 0))
  resets = {"none": [0, 5, 10, 15], "segment": [0, 5, 7, 10, 14, 15]}[mask]
  np.testing.assert_array_equal(np.nonzero(rows["reset"].reshape(-1))[0], resets)
  assert valid.sum() == at.sum() - hidden.sum()


def test_positions_run_on_or_start_anew():
  rows = pack(DOCUMENTS, 20, separator=SEPARATOR)
  np.testing.assert_array_equal(rows["positions"][0, :16], np.arange(16))
  rows = pack(DOCUMENTS, 20, separator=SEPARATOR, mask="segment")
  shown = rows["positions"][rows["valid"]]
  assert shown.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 0, 1]


def test_without_separator():
  rows = pack(DOCUMENTS, 20, mask="segment")
  assert rows["inputs"][rows["valid"]].tolist() == [10, 11, 12, 30, 31, 32, 33, 34, 40, 41]
  assert rows["targets"][rows["valid"]].tolist() == [11, 12, 13, 31, 32, 33, 34, 35, 41, 42]
  rows = pack(DOCUMENTS, 20)
  assert rows["targets"][rows["valid"]].tolist() == np.concatenate(DOCUMENTS)[1:].tolist()


@pytest.mark.parametrize(("mask", "sees"), [("none", True), ("segment", False)])
def test_what_sees_other_documents(mask, sees):
  """The gradient of a later document's loss with respect to an earlier document's tokens."""
  rows = pack([np.arange(4), np.arange(5)], 12, separator=7, mask=mask)
  body = functools.partial(Stack, pattern=(functools.partial(Attention, heads=2),))
  model = LanguageModel(8, 8, body=body, rngs=nnx.Rngs(0))
  reset, valid = jnp.asarray(rows["reset"]), jnp.asarray(rows["valid"])
  later = jnp.cumsum(jnp.asarray(rows["inputs"] == 0) & valid, axis=1) == 2

  @jax.jit
  @jax.grad
  def gradient(x):
    y, _ = model.body(x, model.body.init_state(1), reset=reset, valid=valid)
    return jnp.sum(jnp.where((later & valid)[..., None], y, 0.0) ** 3)

  size = np.abs(np.asarray(gradient(model.embed(jnp.asarray(rows["inputs"]))))[0]).max(axis=-1)
  assert (size[:4].max() > 1e-6) == sees
  assert size[:4].max() == 0 or sees
  assert size[5:8].max() > 1e-6
  if not sees:
    assert len(np.unique(np.asarray(segments(reset, reset.shape))[rows["valid"]])) == 2


def test_resampling_by_length():
  lengths = np.repeat([100, 5000, 9000], 4000)
  chosen = resample(lengths, seed=0, short=4096, keep=0.3, long=8192, repeat=2.5)
  assert (np.diff(chosen) >= 0).all()
  counts = np.bincount(chosen, minlength=len(lengths)).reshape(3, -1)
  assert set(counts[0]) == {0, 1} and set(counts[1]) == {1} and set(counts[2]) == {2, 3}
  np.testing.assert_allclose(counts.mean(axis=1), [0.3, 1.0, 2.5], atol=0.03)
  again = resample(lengths, seed=0, short=4096, keep=0.3, long=8192, repeat=2.5)
  np.testing.assert_array_equal(chosen, again)


@pytest.mark.parametrize(
  ("build", "words"),
  [
    (lambda: pack(DOCUMENTS, 0), "length=0"),
    (lambda: pack(DOCUMENTS, 4, mask="block"), "mask='block' must be"),
    (lambda: pack(DOCUMENTS, 4, separator=-1), "separator=-1"),
    (lambda: pack([np.arange(3), np.arange(0)], 4), r"documents \[1\] hold no tokens"),
    (lambda: pack([np.arange(1)], 4), "fewer than two tokens"),
    (lambda: cut([1, 1], length=4), "no document has two tokens"),
    (lambda: corpus().train_batches(8, 2, pack=True, stream=True), "choose one"),
    (lambda: corpus().train_batches(8, 2, separator=3), "separator=3 is read with pack=True"),
    (lambda: corpus().train_batches(8, 2, pack=True, separator=256), "separator=256 is no id"),
    (lambda: resample(np.ones(3), seed=0, short=9, keep=2, long=8, repeat=1), "keep=2"),
  ],
)
def test_bad_arguments(build, words):
  with pytest.raises(ValueError, match=words):
    build()
