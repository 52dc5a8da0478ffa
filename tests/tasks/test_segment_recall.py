"""Recall across segments against a reader that looks the key up."""

import jax
import numpy as np
import pytest

from memjax.tasks import segment_recall

WORLD = segment_recall.World(noise=3, keys=4, values=5)
sample = jax.jit(
  segment_recall.sample, static_argnums=(1, 2), static_argnames=("segment", "gap", "pairs")
)


@pytest.mark.parametrize(("gap", "pairs"), [(0, 1), (2, 3)])
def test_the_answer_stands_after_its_key_in_the_first_segment(gap, pairs):
  recalls = sample(jax.random.key(0), 200, WORLD, segment=7, gap=gap, pairs=pairs)
  ids, answers = np.asarray(recalls.ids), np.asarray(recalls.answer)
  assert ids.shape == (200, 2 + gap, 7) and WORLD.vocab == 12
  for row, answer in zip(ids, answers, strict=True):
    first, keys = row[0], (row >= 3) & (row < 7)
    assert keys[0].sum() == pairs and len(set(first[keys[0]])) == pairs
    (place,) = np.nonzero(first == row[-1, -1])[0]
    assert first[place + 1] == answer >= 7
    keys[0, :], keys[-1, -1] = False, False
    assert not keys.any() and (row[1:] < 7).all()  # elsewhere is noise alone
  assert set(answers) == {7, 8, 9, 10, 11} and set(ids[:, -1, -1]) == {3, 4, 5, 6}


@pytest.mark.parametrize(("pairs", "segment"), [(0, 8), (5, 20), (3, 5)])
def test_pairs_that_do_not_fit_are_refused(pairs, segment):
  with pytest.raises(ValueError, match=f"pairs={pairs} must be from 1 to"):
    segment_recall.sample(jax.random.key(0), 1, WORLD, segment=segment, pairs=pairs)


def test_the_key_asked_first_is_told_in_one_of_the_later_segments():
  sample = jax.jit(
    segment_recall.sample_asked, static_argnums=(1, 2), static_argnames=("segment", "told")
  )
  recalls = sample(jax.random.key(0), 200, WORLD, segment=5, told=3)
  ids, answers, found = np.asarray(recalls.ids), np.asarray(recalls.answer), set()
  assert ids.shape == (200, 4, 5)
  for row, answer in zip(ids, answers, strict=True):
    is_key, is_value = (row >= 3) & (row < 7), row >= 7
    assert is_key[0].tolist() == [True] + [False] * 4 and not is_value[0].any()
    assert (is_key[1:].sum(axis=1) == 1).all() and len(set(row[1:][is_key[1:]])) == 3
    np.testing.assert_array_equal(is_value[1:, 1:], is_key[1:, :-1])
    ((segment, place),) = np.argwhere(row[1:] == row[0, 0]) + [1, 0]
    assert row[segment, place + 1] == answer
    found.add((segment, place))
  assert found == {(segment, place) for segment in (1, 2, 3) for place in range(4)}
  assert set(answers) == {7, 8, 9, 10, 11} and set(ids[:, 0, 0]) == {3, 4, 5, 6}


@pytest.mark.parametrize(("told", "segment"), [(0, 8), (5, 20), (3, 1)])
def test_tellings_that_do_not_fit_are_refused(told, segment):
  with pytest.raises(ValueError, match=f"told={told} must be from 1 to"):
    segment_recall.sample_asked(jax.random.key(0), 1, WORLD, segment=segment, told=told)
