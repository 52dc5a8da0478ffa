"""Random choices: that they are choices, and that they are even."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import draw


def many(fn, count):
  return np.asarray(jax.jit(jax.vmap(fn))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize(("n", "k"), [(5, 5), (200, 3), (300, 7), (4095, 64), (2**20 + 1, 9)])
def test_distinct_numbers_are_distinct_and_even(n, k):
  found = many(functools.partial(draw.distinct, n=n, k=k), 2000)
  assert found.shape == (2000, k) and found.min() >= 0 and found.max() < n
  assert all(len(set(row)) == k for row in found)
  bins = min(n, 20)
  counts = np.stack([np.bincount(column * bins // n, minlength=bins) for column in found.T])
  # Each place of the choice falls evenly: 5 deviations of a binomial count.
  assert np.abs(counts - 2000 / bins).max() < 5 * (2000 / bins) ** 0.5
  if k > 1:  # one place says nothing of the next
    pairs = np.corrcoef(found[:, 0], found[:, 1])[0, 1]
    assert abs(pairs + 1 / (n - 1)) < 5 / 2000**0.5


def test_a_permutation_is_one_and_known_in_parts():
  whole = many(lambda key: draw.permuted(key, 90, jnp.arange(90)), 3)
  assert (np.sort(whole, axis=1) == np.arange(90)).all() and (whole[0] != whole[1]).any()
  part = many(lambda key: draw.permuted(key, 90, jnp.asarray([70, 3])), 3)
  np.testing.assert_array_equal(part, whole[:, [70, 3]])


def test_skipping_misses_what_is_taken():
  moved = draw.skipping(jnp.arange(5), jnp.asarray([0, 3, 4]))
  np.testing.assert_array_equal(moved, [1, 2, 5, 6, 7])


def test_weighted_choices_follow_their_weights():
  logs = jnp.log(jnp.asarray([1.0, 2, 3, 4]))
  found = many(lambda key: draw.weighted(key, logs, 2), 20_000)
  first = np.bincount(found[:, 0], minlength=4) / 20_000
  np.testing.assert_allclose(first, [0.1, 0.2, 0.3, 0.4], atol=0.015)
  after = found[found[:, 0] == 3, 1]  # of 1, 2 and 3 parts are left
  np.testing.assert_allclose(np.bincount(after, minlength=4) / len(after), [1/6, 1/3, 1/2, 0],
                             atol=0.02)  # fmt: skip


def test_spots_are_sorted():
  found = many(lambda key: draw.spots(key, 9, 4), 200)
  assert (np.diff(found, axis=1) > 0).all()


def test_no_kind_follows_itself_if_that_can_be():
  counts = jnp.asarray([6, 3, 2], jnp.int32)  # tight: most draws end in a dead end
  found = many(lambda key: draw.without_repeats(key, counts, 11, tries=64), 300)
  assert (found[:, 1:] != found[:, :-1]).all()
  assert all((np.bincount(row) == [6, 3, 2]).all() for row in found)
  stuck = many(lambda key: draw.without_repeats(key, jnp.asarray([3, 1]), 4), 5)
  assert all((np.bincount(row) == [3, 1]).all() for row in stuck)


def test_more_than_there_are_is_refused():
  with pytest.raises(ValueError, match=r"k=4 must lie in 0\.\.n=3"):
    draw.distinct(jax.random.key(0), 3, 4)
