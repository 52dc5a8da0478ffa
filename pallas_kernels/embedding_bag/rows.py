"""The gradient of a table as the rows that were touched: merged, sorted, never of the table's size.

Reads (t, j) are sorted by row, stably, so that equal rows are summed in one order whatever the
machine. `update_rows` goes over the sorted reads a chunk at a time and hands complete rows to an
optimiser: not even the touched rows all stand in memory at once.

E = T * b reads, C of them in a chunk, U = min(N, E) rows at most.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

CHUNK = 2048  # reads in a chunk: what a row needs then stays in a CPU's cache

PUT = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TouchedRows:
  """The rows of a table's gradient `[N, dv]` that are not zero by construction.

  Attributes:
    ids: `[U]` int32, ascending and distinct; after `count` of them N, N + 1, ...: a scatter with
      `mode="drop"` leaves those out, and may rely on sorted and unique indices.
    rows: `[U, dv]` float32, zeros after `count`.
    count: int32.
  """

  ids: jax.Array
  rows: jax.Array
  count: jax.Array

  def dense(self, rows: int) -> jax.Array:
    """The gradient `[N, dv]`."""
    table = jnp.zeros((rows, self.rows.shape[1]), self.rows.dtype)
    return table.at[self.ids].set(self.rows, **PUT)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reads:
  """The reads of a table, sorted by row: `[E]` each.

  Attributes:
    row: int32, ascending; N for padding.
    order: int32, where each read stands in the flattened `[T, b]`.
    rank: int32, 0, 0, 1, ...: which of the distinct rows it is.
  """

  row: jax.Array
  order: jax.Array
  rank: jax.Array


def sort_reads(ids: jax.Array, rows: int) -> Reads:
  """The reads `ids [T, b]` of a table of N = `rows` rows, sorted; ids outside of it are padding."""
  flat = ids.reshape(-1).astype(jnp.int32)
  flat = jnp.where((flat < 0) | (flat > rows), rows, flat)
  order = _order(flat, rows)
  row = flat.at[order].get(mode="promise_in_bounds", unique_indices=True)
  new = jnp.concatenate([jnp.zeros(1, jnp.int32), (row[1:] != row[:-1]).astype(jnp.int32)])
  return Reads(row, order, jnp.cumsum(new[: flat.size], dtype=jnp.int32))


def _order(flat: jax.Array, largest: int) -> jax.Array:
  """A stable `argsort` of integers in 0..largest, digit by digit.

  A digit and a position share 32 bits: XLA's CPU sorts one array of plain integers six times as
  fast as a pair of arrays.
  """
  position = jnp.arange(flat.size, dtype=jnp.uint32)
  bits = max(1, (flat.size - 1).bit_length())
  if bits > 24:  # too many digits
    return jax.lax.sort((flat, position), num_keys=1, is_stable=True)[1].astype(jnp.int32)
  low, order = jnp.uint32((1 << bits) - 1), position
  for shift in range(0, largest.bit_length(), 32 - bits):
    digit = flat.astype(jnp.uint32)[order] if shift else flat.astype(jnp.uint32)
    key = ((digit >> shift) << bits) | position  # higher digits are pushed out at the top
    order = order.at[jax.lax.sort(key) & low].get(mode="promise_in_bounds", unique_indices=True)
  return order.astype(jnp.int32)


def touched_rows(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, rows: int, *, chunk: int = CHUNK
) -> TouchedRows:
  """The gradient of a table as touched rows: `dV[r] = sum of weights[t, j] vectors[t]`.

  Args:
    ids: `[T, b]` integer; N = `rows` is padding.
    weights: `[T, b]` float.   vectors: `[T, dv]` float.   rows: N.
    chunk: reads that are summed at once.

  Returns:
    U = min(N, T b) rows, summed in float32 in the order of the reads: bit for bit repeatable.
  """
  size = min(rows, ids.size)
  found = rows + jnp.arange(size, dtype=jnp.int32)
  summed = jnp.zeros((size, vectors.shape[1]), jnp.float32)

  def write(arrays, row, rank, gradient, live):
    at = jnp.where(live, rank, size + jnp.arange(rank.size))
    return jax.tree.map(lambda a, b: a.at[at].set(b, **PUT), arrays, (row, gradient))

  found, summed = _visit(ids, weights, vectors, rows, chunk, write, (found, summed))
  return TouchedRows(found, summed, jnp.sum(found < rows, dtype=jnp.int32))


def update_rows(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, arrays: Any, fn: Callable, carry: Any,
  *, chunk: int = CHUNK,
) -> tuple[Any, Any]:  # fmt: skip
  """Applies `fn` to every touched row of a table and of what stands beside it, each row once.

  Args:
    ids, weights, vectors: as for `touched_rows`.
    arrays: a pytree of `[N, ...]`: the table, its moments. Donated, they are updated in place.
    fn: `(carry, gradient [R, dv] float32, rows, live [R] bool) -> (carry, rows)`, where `rows` has
      the structure of `arrays` with leaves `[R, ...]`. What it returns where `live` is false is
      dropped; its carry must not depend on those rows.
    carry: a pytree that is handed from chunk to chunk, in ascending order of rows.
    chunk: reads in a chunk; temporaries are of `[chunk, dv]`.

  Returns:
    carry, and the arrays with their touched rows replaced.
  """
  rows = jax.tree.leaves(arrays)[0].shape[0]

  def visit(loop, row, rank, gradient, live):
    carry, arrays = loop
    at = jnp.minimum(row, rows - 1)
    old = jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), arrays)
    carry, new = fn(carry, gradient, old, live)
    put = lambda a, b: a.at[row].set(b.astype(a.dtype), **PUT)  # noqa: E731
    return carry, jax.tree.map(put, arrays, new)

  return _visit(ids, weights, vectors, rows, chunk, visit, (carry, arrays))


def _each(order, weights, vectors) -> jax.Array:
  """What each read adds to its row, `[reads, dv]` float32."""
  weight = weights.reshape(-1).at[order].get(mode="promise_in_bounds").astype(jnp.float32)
  vector = vectors.at[order // weights.shape[1]].get(mode="promise_in_bounds")
  return weight[:, None] * vector.astype(jnp.float32)


def _visit(ids, weights, vectors, rows: int, chunk: int, fn: Callable, carry: Any) -> Any:
  """Hands each touched row to `fn` once, complete, in ascending order, about a chunk at a time.

  Args:
    fn: `(carry, row [R], rank [R], gradient [R, dv], live [R]) -> carry`; where `live` is false,
      rows are N and more, ascending, for a scatter to drop.
  """
  if ids.size == 0:
    return carry
  chunk = min(chunk, ids.size)
  reads = sort_reads(ids, rows)
  # One read of padding at least: the row of the last read of a chunk waits for the next chunk.
  more = chunk - ids.size % chunk
  last = reads.rank[-1:] + (reads.row[-1:] < rows)
  pad = lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, (more,))]).reshape(-1, chunk)  # noqa: E731
  row, rank = pad(reads.row, jnp.int32(rows)), pad(reads.rank, last)
  order = pad(reads.order, jnp.int32(0))
  slots = jnp.arange(chunk + 1, dtype=jnp.int32)
  sums = {"mode": "promise_in_bounds", "indices_are_sorted": True}

  def body(loop, reads):
    carry, begun = loop
    row, order, rank = reads
    local = rank - begun["rank"]  # slot 0: the row that the chunk before left open
    each = jnp.where((row < rows)[:, None], _each(order, weights, vectors), 0)
    summed = jnp.zeros((chunk + 1, vectors.shape[1]), jnp.float32).at[0].set(begun["sum"])
    summed = summed.at[local].add(each, **sums)
    found = (rows + slots).at[0].set(begun["row"]).at[local].set(row, **sums)
    end = local[-1]
    live = (slots < end) & (found < rows)
    carry = fn(carry, jnp.where(live, found, rows + slots), begun["rank"] + slots, summed, live)
    return (carry, {"rank": rank[-1], "row": row[-1], "sum": summed[end]}), None

  begun = {"rank": jnp.int32(0), "row": reads.row[0], "sum": jnp.zeros(vectors.shape[1])}
  return jax.lax.scan(body, (carry, begun), (row, order, rank))[0][0]
