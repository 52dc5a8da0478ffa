"""Lookups in a `Table`, whose gradient may leave as touched rows instead of an array of its size.

Each lookup puts a tap on its output and emits what it read. A training step that keeps the table
out of differentiation and collects (`core.channel`) then has both factors of every touched row,
dV[r] = sum over reads (t, j) of row r of weights[t, j] vectors[t]: one emitted, one the tap's
gradient. Nobody else pays for it.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from memjax.core import channel, sharded
from memjax.core.table_sharding import TableSharding
from pallas_kernels.embedding_bag import dot_bag, embedding_bag
from pallas_kernels.product_key_topk import product_key_topk

TOUCH = "touch:"  # of emissions and taps: `<scope>/touch:<label>`
SHARED = "shared:"  # of the label of an entry of `context.shared`


def bag(
  table: jax.Array, ids: jax.Array, weights: jax.Array, *, label: str,
  sharding: TableSharding | None = None, implementation=None,
) -> jax.Array:  # fmt: skip
  """Weighted sums of rows (`embedding_bag`): ids and weights `[B, T, b]` to `[B, T, dv]` float32.

  Args:
    table: `[N, dv]`.   ids: N for padding. Where a scan over layers holds its tables
      (`core.module.hold`), `[*L, N, dv]`, of which this layer's part is read.
    label: the attribute that holds the `Table`, alone of its name in the layer; for an entry of
      `context.shared`, `SHARED + name`.
    sharding: how the table lies on a mesh; the layer's `table_sharding`.
    implementation: as for `embedding_bag`.

  Emits `touch:<label>`: {"ids", "weights", "layers"}; the tap of that name is added to the output.
  "layers" holds `channel.indices()`: where in its stacks the layer stands, and so its table.
  """
  table, rows = _placed(table, ids, label, sharding)
  if sharding is not None:
    y = sharded.bag(sharding, table, rows, weights, implementation=implementation)
  else:
    flat = rows.reshape(-1, ids.shape[-1]), weights.reshape(-1, ids.shape[-1])
    y = embedding_bag(table, *flat, implementation=implementation).reshape(*ids.shape[:-1], -1)
  return _tapped(y, label, {"ids": ids, "weights": weights})


def dots(
  table: jax.Array, ids: jax.Array, vectors: jax.Array, *, label: str,
  sharding: TableSharding | None = None, implementation=None,
) -> jax.Array:  # fmt: skip
  """Inner products with rows (`dot_bag`): ids `[B, T, b]`, vectors `[B, T, dv]` to `[B, T, b]`.

  Args: as for `bag`.

  Emits `touch:<label>`: {"ids", "vectors", "layers"}; the tap of that name is added to the output.
  """
  table, rows = _placed(table, ids, label, sharding)
  if sharding is not None:
    d = sharded.dots(sharding, table, rows, vectors, implementation=implementation)
  else:
    flat = rows.reshape(-1, ids.shape[-1]), vectors.reshape(-1, vectors.shape[-1])
    d = dot_bag(table, *flat, implementation=implementation).reshape(ids.shape)
  return _tapped(d, label, {"ids": ids, "vectors": vectors})


def search(
  queries: jax.Array, keys: jax.Array, top_k: int, *, sharding: TableSharding | None = None,
  implementation=None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """`product_key_topk` of queries `[B, T, H, dk]`: scores and ids, `[B, T, H, k]`.

  Args:
    keys, top_k, implementation: as there.   sharding: as for `bag`.
  """
  if sharding is not None:
    return sharded.search(sharding, queries, keys, top_k, implementation=implementation)
  tokens = queries.reshape(-1, *queries.shape[2:])
  scores, ids = product_key_topk(tokens, keys, top_k, implementation=implementation)
  shape = (*queries.shape[:-1], top_k)
  return scores.reshape(shape), ids.reshape(shape)


def place(ids: jax.Array, shape: Sequence[int], layers: Sequence[jax.Array]) -> jax.Array:
  """Ids in the N rows of a layer's part of a table, as ids in the table `[*L, N, dv]` seen as
  `[L N, dv]`; L N for padding.

  Args:
    ids: `[..., B, T, b]`.   shape: of the table.
    layers: `channel.indices()` at the lookup, of the leading axes of the ids.
  """
  *lead, rows, _ = shape
  if not lead:
    return ids
  if len(layers) < len(lead):
    raise ValueError(
      f"a table is stacked as {list(shape)}, but was read outside of a scan over its layers"
    )
  first = jnp.int32(0)
  for index, count in zip(layers, lead, strict=False):
    first = first * count + index.reshape(*index.shape, *[1] * (ids.ndim - index.ndim))
  return jnp.where((ids >= 0) & (ids < rows), ids + first * rows, math.prod(shape[:-1]))


def _placed(table: jax.Array, ids: jax.Array, label: str, sharding: TableSharding | None):
  """The table to read, `[N, dv]`, or as it lies on a mesh; and the ids in it."""
  channel.refuse_if_muted(TOUCH + label)
  if table.ndim <= 2:
    return table, ids
  rows = place(ids, table.shape, channel.indices()[: table.ndim - 2])
  return (table.reshape(-1, table.shape[-1]) if sharding is None else table), rows


def _tapped(y: jax.Array, label: str, read: dict) -> jax.Array:
  if not channel.collecting():
    return y
  read = {**read, "layers": channel.indices()}
  channel.emit(TOUCH + label, jax.lax.stop_gradient(read))
  return y + channel.tap(TOUCH + label, y.shape, y.dtype)
