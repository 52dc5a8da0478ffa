"""The form that is fast under XLA: a few slots, or a few tokens, at a time; never `[T, b, dv]`.

A CPU pays for every large temporary it makes, so each loop keeps its own in cache. The caller
vouches for the ids: `promise_in_bounds` saves a third of a gather.
"""

import jax
import jax.numpy as jnp

SLOTS = 8  # slots added in one pass over the output
TOKENS = 16  # tokens whose rows the backward pass handles at once


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
  return table.at[ids].get(mode="promise_in_bounds").astype(jnp.float32)


def embedding_bag(values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """See `op.embedding_bag`."""
  tokens, bag = ids.shape
  slots = (ids.T, weights.T.astype(jnp.float32))  # [b, T]

  def add(y, group):
    for slot, weight in zip(*group, strict=True):
      y = y + weight[:, None] * _rows(values, slot)
    return y

  y = jnp.zeros((tokens, values.shape[1]), jnp.float32)
  whole = bag - bag % SLOTS
  if whole:
    groups = jax.tree.map(lambda a: a[:whole].reshape(-1, SLOTS, tokens), slots)
    y, _ = jax.lax.scan(lambda y, group: (add(y, group), None), y, groups)
  return add(y, jax.tree.map(lambda a: a[whole:], slots))


def gradients(
  values: jax.Array, ids: jax.Array, weights: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of values (dense) and weights, both summed in float32, given that of y `[T, dv]`.

  dw[t, j] = <g[t], V[ids[t, j]]>;   dV[r] = sum of w[t, j] g[t] over all (t, j) with id r.
  """
  tokens, bag = ids.shape
  size = max(1, min(TOKENS, tokens))

  def cut(array):  # the padding reads row 0 with weight 0
    array = jnp.pad(array, ((0, -tokens % size), (0, 0)))
    return array.reshape(-1, size, array.shape[1])

  ids, weights, g = cut(ids), cut(weights.astype(jnp.float32)), cut(cotangent.astype(jnp.float32))

  def scatter(table, chunk):
    ids, weights, g = chunk
    rows = weights[..., None] * g[:, None]
    return table.at[ids].add(rows, mode="promise_in_bounds"), None

  def dot(chunk):
    ids, g = chunk
    return jnp.einsum("td,tbd->tb", g, _rows(values, ids))

  # Two loops: sharing one was twice as slow.
  grad_values, _ = jax.lax.scan(scatter, jnp.zeros(values.shape, jnp.float32), (ids, weights, g))
  grad_weights = jax.lax.map(dot, (ids, g)).reshape(-1, bag)[:tokens]
  return grad_values.astype(values.dtype), grad_weights.astype(weights.dtype)
