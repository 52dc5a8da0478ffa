"""Lookups in a `Table`, whose gradient may leave as touched rows instead of an array of its size.

Each lookup puts a tap on its output and emits what it read. A training step that keeps the table
out of differentiation and collects (`core.channel`) then has both factors of every touched row,
dV[r] = sum over reads (t, j) of row r of weights[t, j] vectors[t]: one emitted, one the tap's
gradient. Nobody else pays for it.
"""

import jax

from memjax.core import channel
from pallas_kernels.embedding_bag import dot_bag, embedding_bag

TOUCH = "touch:"  # of emissions and taps: `<scope>/touch:<label>`
SHARED = "shared:"  # of the label of an entry of `context.shared`


def bag(
  table: jax.Array, ids: jax.Array, weights: jax.Array, *, label: str, implementation=None
) -> jax.Array:
  """Weighted sums of rows (`embedding_bag`): ids and weights `[B, T, b]` to `[B, T, dv]` float32.

  Args:
    table: `[N, dv]`.   ids: N for padding.
    label: the attribute that holds the `Table`, alone of its name in the layer; for an entry of
      `context.shared`, `SHARED + name`.
    implementation: as for `embedding_bag`.

  Emits `touch:<label>`: {"ids", "weights"}; the tap of that name is added to the output.
  """
  bags = ids.shape[-1]
  y = embedding_bag(
    table, ids.reshape(-1, bags), weights.reshape(-1, bags), implementation=implementation
  ).reshape(*ids.shape[:-1], -1)
  return _tapped(y, label, {"ids": ids, "weights": weights})


def dots(
  table: jax.Array, ids: jax.Array, vectors: jax.Array, *, label: str, implementation=None
) -> jax.Array:
  """Inner products with rows (`dot_bag`): ids `[B, T, b]`, vectors `[B, T, dv]` to `[B, T, b]`.

  Args: as for `bag`.

  Emits `touch:<label>`: {"ids", "vectors"}; the tap of that name is added to the output.
  """
  flat = ids.reshape(-1, ids.shape[-1]), vectors.reshape(-1, vectors.shape[-1])
  d = dot_bag(table, *flat, implementation=implementation).reshape(ids.shape)
  return _tapped(d, label, {"ids": ids, "vectors": vectors})


def _tapped(y: jax.Array, label: str, read: dict) -> jax.Array:
  if not channel.collecting():
    return y
  channel.emit(TOUCH + label, jax.lax.stop_gradient(read))
  return y + channel.tap(TOUCH + label, y.shape, y.dtype)
