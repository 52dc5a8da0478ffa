"""The form that is fast under XLA: the k best of each half, then of the pairs that can win."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.product_key_topk.reference import half_scores


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
  """See `op.product_key_topk`; takes O(T H n) memory."""
  found = jax.lax.top_k(half_scores(queries, keys), top_k)  # [H, 2, T, k] scores and ids
  # Without the barrier XLA merges the slices below into the top-k, and sorts all n scores instead.
  # In this order, for XLA's CPU compiler dies of a barrier right on a top-k (inside a shard_map).
  ids, scores = jax.lax.optimization_barrier((found[1], found[0]))
  sums = [scores[:, 0, :, a, None] + scores[:, 1, :, : top_k // (a + 1)] for a in range(top_k)]
  best, pair = jax.lax.top_k(jnp.concatenate(sums, axis=-1), top_k)  # the staircase, row by row
  # Ids after the final top-k: k of them instead of one for each candidate.
  first, second = (
    jnp.asarray(rank, jnp.int32).at[pair].get(mode="promise_in_bounds") for rank in staircase(top_k)
  )
  rows = _take(ids[:, 0], first) * keys.shape[2] + _take(ids[:, 1], second)
  return best.swapaxes(0, 1), rows.swapaxes(0, 1)


def gradients(
  queries: jax.Array, keys: jax.Array, ids: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of queries and keys: each chosen slot passes its own on to both of its halves.

  Args:
    queries, keys: as given to `product_key_topk`.
    ids, cotangent: `[T, H, k]`, the slots found, and the gradient of their scores.
  """
  tokens, heads, width = queries.shape
  n = keys.shape[2]
  halves = jnp.stack([ids // n, ids % n])  # [2, T, H, k]
  half, token, head, _ = np.ogrid[:2, :tokens, :heads, :1]
  grad = jnp.zeros((heads, 2, tokens, n), jnp.float32)
  grad = grad.at[head, half, token, halves].add(cotangent[None], mode="promise_in_bounds")
  parts = queries.reshape(tokens, heads, 2, width // 2)
  grad_queries = jnp.einsum("hstn,hsnd->thsd", grad.astype(keys.dtype), keys)
  grad_keys = jnp.einsum("hstn,thsd->hsnd", grad.astype(queries.dtype), parts)
  return grad_queries.reshape(queries.shape).astype(queries.dtype), grad_keys.astype(keys.dtype)
