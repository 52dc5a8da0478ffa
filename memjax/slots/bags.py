"""Bags of words: weighted sums of embeddings of ids, with one id that pads.

V words, E tables, d embedding width, J words of a bag.
"""

import jax
import jax.numpy as jnp

NIL = 0  # the id that pads a bag
SMALL = 512  # rows of a table that is read by products: the gradient of a gather is slow to add up


def bags(tables: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """`sum_j weights_j tables[ids_j]` `[..., E, d]`: tables `[V, E, d]`, ids, weights `[..., J]`."""
  if len(tables) <= SMALL:
    counts = jnp.einsum("...jv,...j->...v", jax.nn.one_hot(ids, len(tables)), weights)
    return jnp.einsum("...v,ved->...ed", counts, tables, precision="highest")
  return jnp.einsum("...jed,...j->...ed", jnp.take(tables, ids, axis=0, mode="clip"), weights)


def without_nil(table) -> jax.Array:
  """A table in float32 whose row of the padding id is zero and gets no gradient."""
  return table[...].astype(jnp.float32).at[NIL].set(0)


def known(ids: jax.Array, vocab: int) -> jax.Array:
  """Which bags `[...]` hold only ids from 0 to `vocab` - 1: ids `[..., J]`."""
  return jnp.all((ids >= 0) & (ids < vocab), axis=-1)


def check(what: str, ids, ndim: int, words: int | None, name: str = "words") -> None:
  """Raises unless `ids` are integers `[B, T, words]`, or `[B, words]` where `ndim` is 2.

  `name` is the argument that says how many words.
  """
  leading = "B, T" if ndim == 3 else "B"
  size = "J" if words is None else f"{name}={words}"
  fault = f"{what} are {ids.dtype}{list(ids.shape)}; they must be ids [{leading}, {size}]"
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(fault)
  if ids.ndim != ndim or (words is not None and ids.shape[-1] != words):
    raise ValueError(fault)
