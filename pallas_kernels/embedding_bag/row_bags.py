"""Touched rows on a CPU: the reads of a row as bags of K reads.

K reads of each of many rows are added in one pass over the columns, as the slots of a bag are, on
all threads; a scatter takes read after read on one. Most rows have K reads at most. What others
have beyond that makes further bags, which are added to their rows afterwards.

E = T * b reads, U = min(N, E) rows at most, blocks of R rows: U' is U up to a whole block.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.embedding_bag.reads import Reads, sort_reads

LEAST, MOST = 4, 16  # K: a pass takes K reads' time whether a row has them or not
BLOCK_BYTES = 2**18  # of a block: what it needs then stays in a core's cache between passes
FURTHER = 16, 256  # further bags at once, at least and at most

PUT = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBags:
  """The touched rows of a table and their reads.

  Attributes:
    row: `[U']` int32, ascending and distinct; after `count` of them N, N + 1, ...
    count: int32.
    token, weight: `[K, U']`, of the first K reads of each row; where there are less, weight 0.
    begin: `[U' + 1]` int32, how many further bags come before each row's.
    owner: `[V]` int32, which row (of U') each further bag belongs to, ascending.
    more_token, more_weight: `[K, V]`, of the further bags.
  """

  row: jax.Array
  count: jax.Array
  token: jax.Array
  weight: jax.Array
  begin: jax.Array
  owner: jax.Array
  more_token: jax.Array
  more_weight: jax.Array


def row_bags(ids: jax.Array, weights: jax.Array, rows: int, block: int) -> RowBags:
  """The reads `ids [T, b]`, with `weights [T, b]`, of a table of N = `rows`; others are padding."""
  reads, most = sort_reads(ids, rows), min(rows, ids.size)
  size = -(-most // block) * block
  bag = _bag_size(ids.size, most)
  real = reads.row < rows
  new = real & jnp.concatenate([jnp.ones(1, bool), reads.row[1:] != reads.row[:-1]])
  slot = jnp.where(new, reads.rank, size + 1)
  position = jnp.arange(ids.size, dtype=jnp.int32)
  row = (rows + jnp.arange(size, dtype=jnp.int32)).at[slot].set(reads.row, mode="drop")
  first = jnp.full(size + 1, jnp.sum(real, dtype=jnp.int32)).at[slot].set(position, mode="drop")
  length = first[1:] - first[:-1]
  further = jnp.maximum(length - 1, 0) // bag
  begin = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(further)])
  room = ids.size // bag + block  # a cut of bags never begins within `block` of the end
  owner = jnp.repeat(jnp.arange(size, dtype=jnp.int32), further, total_repeat_length=room)
  skip = bag * (jnp.arange(room, dtype=jnp.int32) - begin[owner] + 1)
  token, weight = _bags(reads, weights, first[:-1], length, bag)
  more = _bags(reads, weights, first[owner] + skip, length[owner] - skip, bag)
  count = jnp.sum(new, dtype=jnp.int32)
  return RowBags(row, count, token, weight, begin, owner, *more)


def _bag_size(reads: int, rows: int) -> int:
  """K: a power of two, about twice the mean."""
  return min(MOST, max(LEAST, 1 << (2 * reads // rows - 1).bit_length()))


def _bags(reads: Reads, weights, first, length, bag: int) -> tuple[jax.Array, jax.Array]:
  """Tokens and weights `[K, V]` of bags `[V]`, each of `length` sorted reads from `first` on."""
  slot = jnp.arange(bag, dtype=jnp.int32)[:, None]
  live = slot < length[None]
  at = jnp.clip(first[None] + jnp.where(live, slot, 0), 0, reads.order.size - 1)
  read = _get(reads.order, at)
  weight = _get(weights.reshape(-1).astype(jnp.float32), read)
  return read // weights.shape[1], jnp.where(live, weight, 0)


def _get(array: jax.Array, at: jax.Array) -> jax.Array:
  return array.at[at].get(mode="promise_in_bounds")


def _added(token: jax.Array, weight: jax.Array, vectors: jax.Array) -> jax.Array:
  """The sums `[V, dv]` of bags `[K, V]`, in one pass."""
  each = (w[:, None] * _get(vectors, t) for t, w in zip(token, weight, strict=True))
  return functools.reduce(jnp.add, each)


def sums(bags: RowBags, vectors: jax.Array, start, block: int) -> jax.Array:
  """`[R, dv]` float32: of rows `start`, ... what their reads add up to; 0 after `bags.count`."""
  vectors = vectors.astype(jnp.float32)
  cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, block, -1)  # noqa: E731
  live = start + jnp.arange(block, dtype=jnp.int32) < bags.count  # others read vectors of padding
  summed = jnp.where(live[:, None], _added(cut(bags.token), cut(bags.weight), vectors), 0)
  least, most = FURTHER
  size = min(block, most, max(least, bags.owner.size * block // bags.row.size // 8))
  end = bags.begin[start + block]

  def add(loop):
    summed, at = loop
    few = lambda a: jax.lax.dynamic_slice_in_dim(a, at, size, -1)  # noqa: E731
    more = _added(few(bags.more_token), few(bags.more_weight), vectors)
    mine = at + jnp.arange(size) < end
    to = jnp.where(mine, few(bags.owner) - start, block)
    return summed.at[to].add(more, mode="drop"), at + size

  return jax.lax.while_loop(lambda loop: loop[1] < end, add, (summed, bags.begin[start]))[0]


def touched(ids, weights, vectors, *, rows: int, size: int) -> tuple[jax.Array, jax.Array]:
  """The ids and the rows of `rows.touched_rows`."""
  bags = row_bags(ids, weights, rows, size)
  return bags.row, sums(bags, vectors, 0, size)


def update(
  fns: Sequence[Callable], ids, weights, vectors, arrays: Any, carry: Any
) -> tuple[Any, Any]:
  """See `rows.update_rows`: each of `fns` reads rows, and writes them, a block at a time.

  One after the other, because what a pass has written the next finds in cache; all at once, the
  program makes each moment twice, to write and to move the row by.
  """
  rows = jax.tree.leaves(arrays)[0].shape[0]
  width = max(1, 4 * vectors.shape[1])
  block = max(1, min(BLOCK_BYTES // width, rows, ids.size))
  bags = row_bags(ids, weights, rows, block)

  def body(loop):
    carry, arrays, start = loop
    gradient = sums(bags, vectors, start, block)
    row = jax.lax.dynamic_slice_in_dim(bags.row, start, block)
    live, at = row < rows, jnp.minimum(row, rows - 1)
    put = lambda a, old, new: a if new is old else a.at[row].set(new.astype(a.dtype), **PUT)  # noqa: E731
    for fn in fns:
      old = jax.tree.map(lambda a: _get(a, at), arrays)
      carry, new = fn(carry, gradient, old, live)
      arrays = jax.tree.map(put, arrays, old, new)
    return carry, arrays, start + block

  start = carry, arrays, jnp.int32(0)
  return jax.lax.while_loop(lambda loop: loop[2] < bags.count, body, start)[:2]
