"""Lookups in a table that is cut over a mesh, in `shard_map` with the collectives written out.

Forward and backward are made of the four exchanges of `core.table_sharding`:

  bag   y = collect(own bag of gather(ids), gather(w));   dw = scatter(own dots with spread(dy))
  dots  d = scatter(own dots with spread(x));             dx = collect(own bag of gather(dd))
  take  y = collect(own rows of gather(ids))

and dV is a device's own, from spread(dy) or gather(dd). No device holds `[tokens of a group, dv]`
of a table cut by columns.

A table is `[N, dv]`, or of stacked layers `[*L, N, dv]`: then ids count in the L N rows, and L N is
padding.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from memjax.core.table_sharding import TableSharding, flat, part, psum
from pallas_kernels import embedding_bag as op
from pallas_kernels.dispatch import Implementation, hashable
from pallas_kernels.embedding_bag import dot_bag, embedding_bag, table_gradient
from pallas_kernels.product_key_topk import product_key_topk


def _map(cut: TableSharding, fn: Callable, into: tuple, out) -> Callable:
  # Kernels say nothing of how their outputs vary over the mesh: check_vma would refuse them.
  return jax.shard_map(fn, mesh=cut.mesh, in_specs=into, out_specs=out, check_vma=False)


def _specs(cut: TableSharding, table: jax.Array) -> tuple[PartitionSpec, ...]:
  """Of the table, of `[B, T, b]`, of `[B, T, dv]`; of `[t, b]` and of `[t, dv]` of a group."""
  copies = part(cut.replicas)
  whole, spread = cut.table_spec(stack=table.ndim - 2), PartitionSpec(copies, part(cut.columns))
  return whole, cut.token_spec(None), cut.vector_spec(), PartitionSpec(copies, None), spread


def _gradient(cut: TableSharding, table, ids, weights, vectors) -> jax.Array:
  """Of this device's piece."""
  summed = psum(table_gradient(ids, weights, vectors, flat(table).shape[0]), cut.replicas)
  return summed.astype(table.dtype).reshape(table.shape)


def bag(
  cut: TableSharding, table: jax.Array, ids: jax.Array, weights: jax.Array, *,
  implementation: Implementation = None,
) -> jax.Array:  # fmt: skip
  """`lookup.bag` in a table that is cut: `[B, T, b]` twice to `[B, T, dv]` float32.

  The gradient of the table is dense, cut as the table is, and summed over its copies.

  Raises:
    ValueError: something does not divide.
  """
  cut.check(table.shape, *ids.shape[:2])
  return _bag(cut, hashable(implementation), table, ids, weights)


def dots(
  cut: TableSharding, table: jax.Array, ids: jax.Array, vectors: jax.Array, *,
  implementation: Implementation = None,
) -> jax.Array:  # fmt: skip
  """`lookup.dots` in a table that is cut: `[B, T, b]` and `[B, T, dv]` to `[B, T, b]` float32.

  Otherwise as `bag`.
  """
  cut.check(table.shape, *ids.shape[:2])
  return _dots(cut, hashable(implementation), table, ids, vectors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _bag(cut, name, table, ids, weights):
  return _bag_forward(cut, name, table, ids, weights)[0]


def _bag_forward(cut, name, table, ids, weights):
  def local(table, ids, weights):
    tokens = ids.shape[:2]
    ids, weights = cut.gather(flat(ids)), cut.gather(flat(weights))
    y = embedding_bag(flat(table), cut.own(ids, table.shape), weights, implementation=name)
    return cut.collect(y).reshape(*tokens, -1), ids, weights

  whole, slots, vectors, kept, _ = _specs(cut, table)
  run = _map(cut, local, (whole, slots, slots), (vectors, kept, kept))
  y, *gathered = run(table, ids, weights)
  return y, (table, *gathered)


def _bag_backward(cut, name, residuals, g):
  def local(table, ids, weights, g):
    tokens, ids = g.shape[:2], cut.own(ids, table.shape)
    g = cut.spread(flat(g))
    of_weights = cut.scatter(dot_bag(flat(table), ids, g, implementation=name))
    of_table = _gradient(cut, table, ids, weights, g)
    return of_table, of_weights.astype(weights.dtype).reshape(*tokens, -1)

  whole, slots, vectors, kept, _ = _specs(cut, residuals[0])
  run = _map(cut, local, (whole, kept, kept, vectors), (whole, slots))
  of_table, of_weights = run(*residuals, g)
  return of_table, None, of_weights


_bag.defvjp(_bag_forward, _bag_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dots(cut, name, table, ids, vectors):
  return _dots_forward(cut, name, table, ids, vectors)[0]


def _dots_forward(cut, name, table, ids, vectors):
  def local(table, ids, vectors):
    tokens = ids.shape[:2]
    ids, vectors = cut.gather(flat(ids)), cut.spread(flat(vectors))
    d = dot_bag(flat(table), cut.own(ids, table.shape), vectors, implementation=name)
    return cut.scatter(d).reshape(*tokens, -1), ids, vectors

  whole, slots, own, kept, spread = _specs(cut, table)
  run = _map(cut, local, (whole, slots, own), (slots, kept, spread))
  d, *gathered = run(table, ids, vectors)
  return d, (table, *gathered)


def _dots_backward(cut, name, residuals, g):
  def local(table, ids, vectors, g):
    tokens, ids = g.shape[:2], cut.own(ids, table.shape)
    g = cut.gather(flat(g))
    of_vectors = cut.collect(embedding_bag(flat(table), ids, g, implementation=name))
    of_table = _gradient(cut, table, ids, g, vectors)
    return of_table, of_vectors.astype(vectors.dtype).reshape(*tokens, -1)

  whole, slots, own, kept, spread = _specs(cut, residuals[0])
  run = _map(cut, local, (whole, kept, spread, slots), (whole, own))
  of_table, of_vectors = run(*residuals, g)
  return of_table, None, of_vectors


_dots.defvjp(_dots_forward, _dots_backward)


def take(cut: TableSharding, table: jax.Array, ids: jax.Array) -> jax.Array:
  """Rows `[B, T, dv]` of a table `[N, dv]` that is cut, in its dtype; NaN for ids outside of it.

  One row a token, as embeddings are read: `bag` without weights.
  """
  cut.check(table.shape, *ids.shape)
  known = (ids >= 0) & (ids < table.shape[0])
  return jnp.where(known[..., None], _take(cut, table, ids), jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take(cut, table, ids) -> jax.Array:
  return _take_forward(cut, table, ids)[0]


def _take_forward(cut, table, ids):
  def local(table, ids):
    everyone = cut.gather(flat(ids[..., None]))
    own = cut.own(everyone, table.shape)[:, 0]
    y = jnp.take(table, own, axis=0, mode="fill", fill_value=0)
    return cut.collect(y).reshape(*ids.shape, -1), everyone

  whole, _, vectors, kept, _ = _specs(cut, table)
  y, everyone = _map(cut, local, (whole, cut.token_spec()), (vectors, kept))(table, ids)
  return y, (table, everyone)


def _take_backward(cut, residuals, g):
  def local(table, ids, g):
    own, g = cut.own(ids, table.shape)[:, 0], cut.spread(flat(g))
    summed = jnp.zeros(table.shape, jnp.float32).at[own].add(g.astype(jnp.float32), mode="drop")
    return psum(summed, cut.replicas).astype(table.dtype)

  whole, _, vectors, kept, _ = _specs(cut, residuals[0])
  return _map(cut, local, (whole, kept, vectors), whole)(*residuals, g), None


_take.defvjp(_take_forward, _take_backward)


def search(
  cut: TableSharding, queries: jax.Array, keys: jax.Array, top_k: int, *,
  implementation: Implementation = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """`product_key_topk`, each device for its own tokens and heads.

  Args:
    queries: `[B, T, H, dk]`.   keys: `[H, 2, n, dk / 2]`.   top_k, implementation: as there.

  Returns: scores and ids, `[B, T, H, k]`.
  """
  batch, time, heads, _ = queries.shape
  cut.divide(batch=(batch, cut.batch), time=(time, cut.time), heads=(heads, cut.heads))

  def local(queries, keys):
    tokens = queries.reshape(-1, *queries.shape[2:])
    found = product_key_topk(tokens, keys, top_k, implementation=implementation)
    return tuple(a.reshape(*queries.shape[:-1], -1) for a in found)

  mine = cut.token_spec(part(cut.heads), None)
  return _map(cut, local, (mine, PartitionSpec(part(cut.heads))), (mine, mine))(queries, keys)


def update_rows(
  cut: TableSharding, ids: jax.Array, weights: jax.Array, vectors: jax.Array, arrays: Any,
  fn: Callable | Sequence[Callable], carry: Any, *, shape: Sequence[int], **options,
) -> tuple[Any, Any]:  # fmt: skip
  """`embedding_bag.update_rows` of a table that is cut: each device updates its own piece.

  What was read goes to all devices that hold rows of it, and of vectors the columns that they
  hold; nothing of the table's size moves.

  Args:
    ids, weights: `[B, T, b]`.   vectors: `[B, T, dv]`.
    arrays: a pytree of `[*L, N, dv]`, cut as the table is, and of `[*L, N, ...]`, cut by rows.
    fn: as there, on own rows and columns, or several; `cut.sum_columns` completes a sum over dv.
    carry: a pytree of zeros to which `fn` adds sums over rows and columns.
    shape: of the table, `[*L, N, dv]`.
    **options: as there.

  Returns: carry, summed over all pieces, and the arrays.
  """
  cut.check(shape, *ids.shape[:2])
  lead = len(shape) - 1

  def local(ids, weights, vectors, arrays, carry):
    ids, weights = (cut.gather(flat(a), replicas=True) for a in (ids, weights))
    vectors = cut.spread(flat(vectors))
    if cut.replicas:
      vectors = flat(jax.lax.all_gather(vectors, cut.replicas))
    piece = *shape[:-2], shape[-2] // cut.ways(cut.rows), vectors.shape[1]
    stacked = jax.tree.map(lambda a: a.reshape(math.prod(piece[:-1]), *a.shape[lead:]), arrays)
    mine = cut.own(ids, piece)
    carry, new = op.update_rows(mine, weights, vectors, stacked, fn, carry, **options)
    new = jax.tree.map(lambda a, b: b.reshape(a.shape), arrays, new)
    return jax.tree.map(lambda a: psum(a, cut.rows + cut.columns), carry), new

  def spec(a):
    return cut.table_spec(columns=a.shape == tuple(shape), stack=lead - 1)

  pieces, same = jax.tree.map(spec, arrays), jax.tree.map(lambda _: PartitionSpec(), carry)
  slots = cut.token_spec(None)
  run = _map(cut, local, (slots, slots, cut.vector_spec(), pieces, same), (same, pieces))
  return run(ids, weights, vectors, arrays, carry)
