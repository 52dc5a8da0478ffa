"""The form that is fast under XLA: the k best of each half, then of the pairs that can win."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import by_platform
from pallas_kernels.product_key_topk import network
from pallas_kernels.product_key_topk.reference import half_scores

SCORES = 2**22  # gradients of scores that stand in memory at once


def staircase(top_k: int) -> tuple[np.ndarray, np.ndarray]:
  """Ranks (a, c) of the pairs that can be among the `top_k` best sums of two descending lists.

  Pair (a, c) is beaten by the (a + 1)(c + 1) - 1 pairs of ranks at most its own, so only those with
  (a + 1)(c + 1) <= k can win: 119 of 1024 for k = 32.
  """
  first, second = np.indices((top_k, top_k))
  can_win = (first + 1) * (second + 1) <= top_k
  return first[can_win], second[can_win]


def _take(values: jax.Array, at: jax.Array) -> jax.Array:
  return jnp.take_along_axis(values, at, axis=-1, mode="promise_in_bounds")


def product_key_topk(
  queries: jax.Array, keys: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
  """See `op.product_key_topk`; takes O(T H n) memory, on a CPU O(n) for many tokens."""
  search = functools.partial(_search, top_k=top_k)
  if queries.shape[0] >= network.TOKENS:
    search = by_platform(search, cpu=functools.partial(network.product_key_topk, top_k=top_k))
  best, rows = search(queries, keys)
  return best, rows


def _search(queries, keys, top_k: int) -> tuple[jax.Array, jax.Array]:
  n = keys.shape[2]
  ids, pair, best = _best(half_scores(queries, keys), top_k)
  # Ids after the final top-k: k of them instead of one for each candidate.
  first, second = (
    jnp.asarray(rank, jnp.int32).at[pair].get(mode="promise_in_bounds") for rank in staircase(top_k)
  )
  rows = _take(ids[:, 0], first) * n + _take(ids[:, 1], second)
  return best.swapaxes(0, 1), rows.swapaxes(0, 1)


def _best(scores, top_k: int):
  """From scores `[H, 2, T, n]` ids `[H, 2, T, k]` of each half, and the best pairs and their sums,
  `[H, T, k]`."""
  found = jax.lax.top_k(scores, top_k)  # [H, 2, T, k] scores and ids
  # Without the barrier XLA merges the slices below into the top-k, and sorts all n scores instead.
  # In this order, for XLA's CPU compiler dies of a barrier right on a top-k (inside a shard_map).
  ids, scores = jax.lax.optimization_barrier((found[1], found[0]))
  found = jax.lax.top_k(_staircase_sums(scores, top_k), top_k)
  pair, best = jax.lax.optimization_barrier((found[1], found[0]))
  return ids, pair, best


def _staircase_sums(scores: jax.Array, top_k: int) -> jax.Array:
  """Sums of `scores [H, 2, T, k]` for the pairs of `staircase`, in its order: row by row, and rows
  of one length together, which makes a small program."""
  sums, a = [], 0
  while a < top_k:
    length = top_k // (a + 1)
    end = top_k // length  # rows a .. end - 1 have this length
    block = scores[:, 0, :, a:end, None] + scores[:, 1, :, None, :length]
    sums.append(block.reshape(*block.shape[:2], -1))
    a = end
  return jnp.concatenate(sums, axis=-1)


def gradients(
  queries: jax.Array, keys: jax.Array, ids: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of queries and keys: each chosen slot passes its own on to both of its halves.

  Args:
    queries, keys: as given to `product_key_topk`.
    ids, cotangent: `[T, H, k]`, the slots found, and the gradient of their scores.

  The gradient of all scores, `[H, 2, T, n]`, is never whole: some tokens at a time.
  """
  tokens = queries.shape[0]
  tile = max(1, SCORES // (2 * keys.shape[0] * keys.shape[2]))
  arrays = queries, ids, cotangent
  if tokens <= tile:
    grad_queries, grad_keys = _gradients(keys, *arrays)
    return grad_queries, grad_keys.astype(keys.dtype)
  more = -tokens % tile
  cut = lambda a: jnp.pad(a, ((0, more), (0, 0), (0, 0))).reshape(-1, tile, *a.shape[1:])  # noqa: E731
  tiles = jax.tree.map(cut, arrays)
  # The first one outside of the loop: inside a shard_map zeros would have another type.
  first, grad_keys = _gradients(keys, *jax.tree.map(lambda a: a[0], tiles))

  def add(grad_keys, tile):
    grad_queries, more = _gradients(keys, *tile)
    return grad_keys + more, grad_queries

  grad_keys, rest = jax.lax.scan(add, grad_keys, jax.tree.map(lambda a: a[1:], tiles))
  grad_queries = jnp.concatenate([first, rest.reshape(-1, *first.shape[1:])])[:tokens]
  return grad_queries, grad_keys.astype(keys.dtype)


def _gradients(keys, queries, ids, cotangent) -> tuple[jax.Array, jax.Array]:
  """That of queries, in their type, and that of keys, float32."""
  tokens, heads, width = queries.shape
  halves = jnp.moveaxis(jnp.stack(jnp.divmod(ids, keys.shape[2])), 2, 0)  # [H, 2, T, k]
  spread = by_platform(_scattered(keys.shape[2]), tpu=_compared(keys.shape[2]))
  grad = spread(halves, jnp.swapaxes(cotangent, 0, 1))
  parts = queries.reshape(tokens, heads, 2, width // 2)
  grad_queries = jnp.einsum("hstn,hsnd->hstd", grad.astype(keys.dtype), keys)
  grad_keys = jnp.einsum("hstn,thsd->hsnd", grad.astype(queries.dtype), parts)
  grad_queries = jnp.moveaxis(grad_queries, 2, 0).reshape(queries.shape)
  return grad_queries.astype(queries.dtype), grad_keys.astype(jnp.float32)


def _scattered(n: int):
  """Gradients of the n scores from those of the k best: `[H, 2, T, n]`, of `[H, T, k]`."""

  def spread(halves, cotangent):
    lists = halves.shape[:3]  # a flat index: on a CPU four times as fast as one of four parts
    first = jnp.arange(math.prod(lists), dtype=jnp.int32).reshape(*lists, 1) * n
    each = jnp.broadcast_to(cotangent[:, None], halves.shape).reshape(-1)
    grad = jnp.zeros(math.prod(lists) * n, jnp.float32)
    grad = grad.at[(first + halves).reshape(-1)].add(each, mode="promise_in_bounds")
    return grad.reshape(*lists, n)

  return spread


def _compared(n: int):
  """The same for a TPU, where k comparisons a score cost less than a scatter; nothing of
  `[H, 2, T, k, n]` is stored."""

  def spread(halves, cotangent):
    chosen = halves[..., None] == jnp.arange(n, dtype=halves.dtype).reshape(1, 1, 1, 1, n)
    return jnp.sum(jnp.where(chosen, cotangent[:, None, :, :, None], 0), axis=3)

  return spread
