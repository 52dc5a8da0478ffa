"""Skipped positions and sampled segments, against what their papers say of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.data import positions
from memjax.data.positions import (
  interpolate_positions,
  sample_segments,
  sentence_starts,
  skip_positions,
)

B, T, N = 24, 100, 400
KEYS = jax.random.split(jax.random.key(0), N)
STARTS = jnp.zeros(B, bool).at[jnp.asarray([0, 3, 4, 10, 17])].set(True)


@functools.cache
def draws(mode, whole=True):
  """`[N, B]` positions of N keys, drawn in one call."""
  starts = STARTS if mode == "sentences" else None
  draw = functools.partial(
    skip_positions, length=B, target=T, mode=mode, starts=starts, whole=whole
  )
  return np.asarray(jax.jit(jax.vmap(lambda key: draw(key)))(KEYS))


@pytest.mark.parametrize("mode", positions.MODES)
def test_positions_rise_below_the_target_and_cover_it(mode):
  got = draws(mode)
  assert got.shape == (N, B) and got.dtype == np.int32
  assert (np.diff(got, axis=1) >= 1).all() and got.min() >= 0 and got.max() < T
  if mode == "full":
    assert (got == np.arange(B)).all()
  else:
    assert set(range(T)) == set(got.reshape(-1).tolist())
    assert got[:, -1].max() == T - 1


def test_full_needs_no_room_and_no_mode_moves_without_any():
  for mode in positions.MODES:
    starts = STARTS if mode == "sentences" else None
    got = skip_positions(KEYS[0], B, B, mode=mode, starts=starts)
    np.testing.assert_array_equal(got, np.arange(B))


def test_pose_has_one_gap():
  jumps = np.diff(draws("pose"), axis=1) - 1
  assert ((jumps > 0).sum(axis=1) == 1).all() and (draws("pose")[:, 0] == 0).all()
  place = jumps.argmax(axis=1) + 1
  assert set(place) == set(range(1, (B + 1) // 2 + 1))
  gaps = jumps.max(axis=1)
  assert gaps.min() >= 1 and gaps.max() <= T - B
  assert gaps.mean() == pytest.approx((1 + T - B) / 2, rel=0.1)


def test_random_positions_are_uniform():
  counts = np.bincount(draws("random").reshape(-1), minlength=T)
  np.testing.assert_allclose(counts, N * B / T, rtol=0.4)
  assert (draws("random")[:, 0] > 0).any()


def test_gaps_fall_between_sentences():
  got, starts = draws("sentences"), np.asarray(STARTS)
  inside = ~starts[1:]
  assert (np.diff(got, axis=1)[:, inside] == 1).all() and (got[:, 0] == 0).all()
  jumps = np.diff(got, axis=1)[:, ~inside] - 1
  assert (jumps > 0).any(axis=0).all() and (jumps > 0).sum(axis=1).max() > 2
  # The first r tokens, to the end of a sentence, stand at 0, 1, ...
  near = (got == np.arange(B)).sum(axis=1)
  assert set(near) <= {3, 4, 10, 17, B}


def test_mean_gap_of_the_sentences():
  """Without the run at the start: m slots of T - B + m, so (T - B) / (m + 1) a gap in the mean."""
  gaps = np.asarray(
    jax.jit(jax.vmap(lambda key: positions._gaps(key, jnp.int32(5), T - B, B)))(KEYS)
  )[:, :5]
  assert (np.diff(gaps, axis=1) >= 0).all() and gaps.min() == 0 and gaps.max() == T - B
  expected = (T - B) / 6
  np.testing.assert_allclose(np.diff(gaps, axis=1, prepend=0).mean(axis=0), expected, rtol=0.15)


def test_released_form_cuts_the_sentence_at_r():
  got = draws("sentences", whole=False)
  near = (got == np.arange(B)).sum(axis=1)
  assert set(range(3, (B + 1) // 2 + 1)) <= set(near)
  whole = draws("sentences")
  later = np.arange(B) >= 17  # no run of at most (B + 1) / 2 tokens reaches them
  np.testing.assert_array_equal(got[:, later], whole[:, later])


def test_sentences_differ_by_row():
  starts = jnp.stack([STARTS, jnp.roll(STARTS, 2).at[0].set(True)])
  draw = lambda key, starts: skip_positions(key, B, T, starts=starts)  # noqa: E731
  got = np.asarray(jax.jit(jax.vmap(draw))(KEYS[:2], starts))
  for row in range(2):
    inside = ~np.asarray(starts)[row, 1:]
    assert (np.diff(got[row])[inside] == 1).all()


def test_sentence_starts():
  tokens = jnp.asarray([5, 1, 7, 2, 1, 1, 3])
  got = sentence_starts(tokens, jnp.asarray([1, 2]))
  assert got.tolist() == [True, False, True, False, True, True, True]


# Segments.

LONG, SHORT = 96, 24


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("include_last", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_segments(count, equal, include_last):
  options = {"equal": equal, "include_last": include_last}
  draw = jax.jit(jax.vmap(lambda key: sample_segments(key, LONG, SHORT, count, **options)))
  index, boundary = (np.asarray(a) for a in draw(KEYS))
  assert index.dtype == np.int32 and (np.diff(index, axis=1) >= 1).all()
  assert index.min() >= 0 and index.max() == LONG - 1
  np.testing.assert_array_equal(boundary[:, 1:], np.diff(index, axis=1) > 1)
  assert not boundary[:, 0].any() and boundary.sum(axis=1).max() == count - 1
  if include_last:
    assert (index[:, -1] == LONG - 1).all()
  parted = boundary[boundary.sum(axis=1) == count - 1]  # no two segments touch
  edges = [np.nonzero(row)[0] for row in parted]
  sizes = [tuple(np.diff([0, *edge, SHORT])) for edge in edges]
  if equal:
    assert set(sizes) == {{1: (24,), 5: (5, 5, 5, 5, 4)}[count]}
  elif count > 1:
    assert len(set(sizes)) > 20


def test_segments_cover_all_distances_and_a_cut_does_not():
  draw = jax.jit(jax.vmap(lambda key: sample_segments(key, LONG, SHORT, 2).index))
  index = np.asarray(draw(KEYS))
  distances = (index[:, :, None] - index[:, None, :]).reshape(-1)
  assert np.histogram(distances, bins=24, range=(0, LONG))[0].min() > 0
  one = np.asarray(jax.vmap(lambda key: sample_segments(key, LONG, SHORT, 1).index)(KEYS))
  assert (one[:, -1] - one[:, 0] == SHORT - 1).all()


def test_where_a_segment_begins_is_uniform():
  index = np.asarray(
    jax.jit(jax.vmap(lambda key: sample_segments(key, 12, 4, 1).index))(
      jax.random.split(jax.random.key(5), 4000)
    )
  )
  np.testing.assert_allclose(np.bincount(index[:, 0]), 4000 / 9, rtol=0.15)


# Tables.


def test_interpolated_table():
  table = jax.random.normal(jax.random.key(1), (5, 3))
  longer = interpolate_positions(table, 17)
  np.testing.assert_allclose(longer[::4], table, atol=1e-6)
  np.testing.assert_allclose(longer[2], (table[0] + table[1]) / 2, atol=1e-6)
  other = interpolate_positions(table, 12)
  np.testing.assert_allclose(other[0], table[0], atol=1e-6)
  np.testing.assert_allclose(other[-1], table[-1], atol=1e-6)
  again = interpolate_positions(table, 12, mode="repeat")
  np.testing.assert_array_equal(again, table[jnp.arange(12) % 5])
  np.testing.assert_array_equal(interpolate_positions(table, 5), table)


@pytest.mark.parametrize(
  ("build", "words"),
  [
    (lambda: skip_positions(KEYS[0], B, T, mode="far"), "mode='far' is not one of"),
    (lambda: skip_positions(KEYS[0], T, B, mode="pose"), "length=100 must lie in 1..target=24"),
    (lambda: skip_positions(KEYS[0], B, T), "mode='sentences' needs starts"),
    (lambda: skip_positions(KEYS[0], B, T, mode="pose", starts=STARTS), "takes no starts"),
    (lambda: skip_positions(KEYS[0], B, T, starts=STARTS[:3]), r"starts is bool\[3\]"),
    (lambda: sample_segments(KEYS[0], 8, 9, 2), "length=9 must lie in 1..8"),
    (lambda: sample_segments(KEYS[0], 8, 4, 5), "segments=5 must lie in 1..4"),
    (lambda: interpolate_positions(jnp.ones((4, 2)), 3), "length=3 must be at least"),
    (lambda: interpolate_positions(jnp.ones((4, 2)), 8, mode="cubic"), "mode='cubic'"),
  ],
)
def test_bad_arguments(build, words):
  with pytest.raises(ValueError, match=words):
    build()
