"""The definitions: gather all rows, then one product."""

import jax
import jax.numpy as jnp


def _rows(values: jax.Array, ids: jax.Array) -> jax.Array:
  """`[T, b, dv]` float32; zeros for the id N."""
  ids = jnp.where(ids < 0, values.shape[0], ids)  # a negative index would count from the end
  return values.at[ids].get(mode="fill", fill_value=0).astype(jnp.float32)


def embedding_bag(values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """See `op.embedding_bag`; makes `[T, b, dv]`."""
  return jnp.einsum("tb,tbd->td", weights.astype(jnp.float32), _rows(values, ids))


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """See `op.dot_bag`; makes `[T, b, dv]`."""
  return jnp.einsum("td,tbd->tb", vectors.astype(jnp.float32), _rows(values, ids))


def table_gradient(ids: jax.Array, weights: jax.Array, vectors: jax.Array, rows: int) -> jax.Array:
  """See `op.table_gradient`; makes `[T, b, dv]`."""
  each = weights.astype(jnp.float32)[:, :, None] * vectors.astype(jnp.float32)[:, None, :]
  ids = jnp.where(ids < 0, rows, ids)
  return jnp.zeros((rows, vectors.shape[1]), jnp.float32).at[ids].add(each, mode="drop")
