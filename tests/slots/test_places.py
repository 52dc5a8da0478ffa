"""Embeddings of places against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from memjax.slots.places import PlaceEmbedding


def make(places, dim, **options):
  return PlaceEmbedding(places, dim, **options, rngs=nnx.Rngs(0))


def waves(index):
  angles = np.asarray(index)[:, None] * np.asarray([1.0, 0.01])
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def test_sines_count_from_the_last_place():
  places = jnp.asarray([0, 4, 5])
  np.testing.assert_allclose(make(6, 4)(places), waves([5, 1, 0]), atol=1e-6)


def test_on_a_grid_rows_and_columns_are_averaged():
  places = jnp.asarray([0, 4, 5])  # (0, 0), (1, 1), (1, 2) of 2 x 3
  expected = (waves([1, 0, 0]) + waves([4, 3, 2])) / 2
  np.testing.assert_allclose(make(6, 4, grid=(2, 3))(places), expected, atol=1e-6)
  learned = make(6, 4, kind="learned", grid=(2, 3))
  table = np.asarray(learned.table[...])
  assert table.shape == (5, 4)
  expected = (table[[3, 4, 4]] + table[[0, 1, 2]]) / 2
  np.testing.assert_allclose(learned(places), expected, rtol=1e-6)


def test_learned_places_are_rows():
  learned = make(3, 4, kind="learned")
  places = jnp.asarray([[2, 0], [1, 1]])
  np.testing.assert_array_equal(learned(places), learned.table[...][places])
  np.testing.assert_array_equal(make(3, 4, kind=None)(places), jnp.zeros((2, 2, 4)))


@pytest.mark.parametrize("grid", [None, (2, 3)])
def test_fourier_features(grid):
  fourier, places = make(6, 4, kind="fourier", grid=grid), np.asarray([0, 4, 5])
  at = places[:, None] if grid is None else np.stack([places // 3, places % 3], axis=1)
  angles = at @ np.asarray(fourier.rates[...])
  h = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / 2
  for layer in (fourier.inner, fourier.outer):
    h = h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    h = h * special.ndtr(h) if layer is fourier.inner else h
  np.testing.assert_allclose(fourier(jnp.asarray(places)), h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"dim": 3}, "dim=3 is odd; .*: use 4"),
    ({"kind": "cosine"}, "place='cosine' is not one of"),
    ({"grid": (2, 2)}, r"grid=\(2, 2\) has 4 cells; it needs places=6"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**({"places": 6, "dim": 4} | options))
