"""The definition: all n * n sums, then the k best."""

import jax
import jax.numpy as jnp


def half_scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """Inner products of each query half with the n keys of its half, `[H, 2, T, n]` float32.

  Args:
    queries: `[T, H, dk]`, the two halves one after the other.   keys: `[H, 2, n, dk / 2]`.
  """
  tokens, heads, width = queries.shape
  halves = queries.reshape(tokens, heads, 2, width // 2)
  return jnp.einsum("thsd,hsnd->hstn", halves, keys, preferred_element_type=jnp.float32)


def product_key_topk(
  queries: jax.Array, keys: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
  """See `op.product_key_topk`; takes O(T H n^2) memory."""
  scores = half_scores(queries, keys)
  sums = scores[:, 0, :, :, None] + scores[:, 1, :, None, :]  # [H, T, n, n]: the first half leads
  best, ids = jax.lax.top_k(sums.reshape(*sums.shape[:2], -1), top_k)
  return best.swapaxes(0, 1), ids.swapaxes(0, 1)
