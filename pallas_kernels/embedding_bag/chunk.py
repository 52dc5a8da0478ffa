"""The forms that are fast under XLA: a few slots, or a few tokens, at a time; never `[T, b, dv]`.

A CPU pays for every large temporary it makes, so each loop keeps its own in cache. An id N reads
row N - 1 with weight 0: then `promise_in_bounds` holds, which saves a third of a gather.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import by_platform

SLOTS = 16  # slots added in one pass over the output
TOKENS = 16  # tokens whose rows a loop handles at once
STRIPS = 64  # tokens at once where it keeps sums over strips of rows only
LANES = 32  # columns of a row that a loop multiplies at once, side by side
COLUMNS = 1024  # of a row in one pass: each strip of LANES is written out in the program


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
  return table.at[ids].get(mode="promise_in_bounds").astype(jnp.float32)


def _inside(ids: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
  """Ids that can be read, and which of them were meant."""
  return jnp.clip(ids, 0, rows - 1), (ids >= 0) & (ids < rows)


def embedding_bag(values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """See `op.embedding_bag`."""
  tokens, bag = ids.shape
  ids, meant = _inside(ids, values.shape[0])
  slots = (ids.T, jnp.where(meant, weights, 0).T.astype(jnp.float32))  # [b, T]

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


def _cut(array: jax.Array, size: int) -> jax.Array:
  """`[T, n]` as `[T / size, size, n]`, zeros at the end."""
  array = jnp.pad(array, ((0, -array.shape[0] % size), (0, 0)))
  return array.reshape(-1, size, array.shape[1])


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """See `op.dot_bag`."""
  tokens, bag = ids.shape
  ids, meant = _inside(ids, values.shape[0])

  def dots(values, ids, vectors, *, dot: Callable, most: int):
    size = max(1, min(most, tokens))
    chunks = _cut(ids, size), _cut(vectors, size)
    return jax.lax.map(lambda chunk: dot(values, *chunk), chunks).reshape(-1, bag)[:tokens]

  best = functools.partial(dots, dot=_dot, most=TOKENS)
  if values.shape[1] % LANES == 0:  # a TPU would lay the whole table out anew for strips
    best = by_platform(best, cpu=functools.partial(dots, dot=_dot_strips, most=STRIPS))
  return jnp.where(meant, best(values, ids, vectors.astype(jnp.float32)), 0)


def _dot(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  return jnp.einsum("td,tbd->tb", vectors, _rows(values, ids))


def _dot_strips(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """The same without the rows in memory: only sums over their strips of LANES columns."""
  strips = values.reshape(values.shape[0], -1, LANES)
  vectors = vectors.reshape(vectors.shape[0], 1, -1, LANES)

  def sums(columns):
    products = (strips.at[ids, i].get(mode="promise_in_bounds") * vectors[:, :, i] for i in columns)
    return jnp.einsum("tbl,l->tb", functools.reduce(jnp.add, products), jnp.ones(LANES))

  count, most = strips.shape[1], COLUMNS // LANES
  passes = [range(start, min(start + most, count)) for start in range(0, count, most)]
  return functools.reduce(jnp.add, map(sums, passes))


def table_gradient(ids: jax.Array, weights: jax.Array, vectors: jax.Array, rows: int) -> jax.Array:
  """See `op.table_gradient`."""
  size = max(1, min(TOKENS, ids.shape[0]))
  ids, meant = _inside(ids, rows)
  weights = jnp.where(meant, weights, 0).astype(jnp.float32)

  def scatter(table, chunk):
    ids, weights, vectors = chunk
    each = weights[..., None] * vectors[:, None]
    return table.at[ids].add(each, mode="promise_in_bounds"), None

  chunks = _cut(ids, size), _cut(weights, size), _cut(vectors.astype(jnp.float32), size)
  table = jnp.zeros((rows, vectors.shape[1]), jnp.float32)
  return jax.lax.scan(scatter, table, chunks)[0]
