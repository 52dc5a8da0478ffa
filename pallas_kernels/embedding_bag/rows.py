"""The gradient of a table as the rows that were touched: merged, sorted, never of the table's size.

Reads (t, j) are sorted by row, stably, so that equal rows are summed in one order whatever the
machine. `update_rows` goes over the sorted reads a chunk at a time and hands complete rows to an
optimiser: not even the touched rows all stand in memory at once.

E = T * b reads, C of them in a chunk, U = min(N, E) rows at most.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import by_platform, lazy
from pallas_kernels.embedding_bag.reads import sort_reads

CHUNK = 2048  # reads in a chunk: what a row needs then stays in a CPU's cache
LARGE = 2**16  # and where a kernel sums them: an accelerator pays for every call
BLOCK = 256  # rows that a CPU updates at once: it pays for empty places, others for every call
WHOLE = 2**30  # as a block: all rows of a chunk

_HERE = "pallas_kernels.embedding_bag"

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
  if ids.size == 0:
    return TouchedRows(found, jnp.zeros((0, vectors.shape[1])), jnp.int32(0))
  run = functools.partial(_touched, rows=rows, size=size, chunk=chunk)
  best = by_platform(
    run, cuda=functools.partial(lazy(f"{_HERE}.gpu_rows", "touched"), rows=rows, size=size),
    tpu=functools.partial(_touched_at_once, rows=rows, size=size),
  )  # fmt: skip
  found, summed = best(ids, weights, vectors)
  return TouchedRows(found, summed, jnp.sum(found < rows, dtype=jnp.int32))


def _touched(ids, weights, vectors, *, rows: int, size: int, chunk: int):
  """The ids and the rows of `touched_rows`: reads are added a chunk at a time to where they belong,
  which is never far from where the last one was."""
  reads = sort_reads(ids, rows)
  slot = jnp.where(reads.row < rows, reads.rank, size)  # padding is dropped
  found = (rows + jnp.arange(size, dtype=jnp.int32)).at[slot].set(reads.row, mode="drop")
  chunk = min(chunk, ids.size)
  more = -ids.size % chunk
  cut = lambda a, fill: jnp.pad(a, (0, more), constant_values=fill).reshape(-1, chunk)  # noqa: E731

  def add(summed, reads):
    order, slot = reads
    each = _weighted(*_read(order, weights), vectors)
    return summed.at[slot].add(each, mode="drop", indices_are_sorted=True), None

  summed = jnp.zeros((size, vectors.shape[1]), jnp.float32)
  return found, jax.lax.scan(add, summed, (cut(reads.order, 0), cut(slot, size)))[0]


def _touched_at_once(ids, weights, vectors, *, rows: int, size: int):
  """The same by a TPU's kernel, all reads in one call."""
  reads = sort_reads(ids, rows)
  found = (rows + jnp.arange(size, dtype=jnp.int32)).at[reads.rank].set(reads.row, mode="drop")
  first = jnp.zeros(vectors.shape[1])
  summed = _tpu_sums(*_read(reads.order, weights), reads.rank, vectors, first, size)
  return found, jnp.where((found < rows)[:, None], summed, 0)


def update_rows(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, arrays: Any, fn: Callable, carry: Any,
  *, chunk: int = CHUNK, block: int = BLOCK,
) -> tuple[Any, Any]:  # fmt: skip
  """Applies `fn` to every touched row of a table and of what stands beside it, each row once.

  Args:
    ids, weights, vectors: as for `touched_rows`.
    arrays: a pytree of `[N, ...]`: the table, its moments. Donated, they are updated in place.
    fn: `(carry, gradient [R, dv] float32, rows, live [R] bool) -> (carry, rows)`, where `rows` has
      the structure of `arrays` with leaves `[R, ...]`. Where `live` is false the gradient is 0, and
      what it returns is dropped; its carry must not depend on those rows.
    carry: a pytree that is handed from call to call, in ascending order of rows.
    chunk: reads that are summed at once; temporaries are of `[chunk, dv]`.
    block: R at most, on a CPU.

  Returns:
    carry, and the arrays with their touched rows replaced.
  """
  if ids.size == 0:
    return carry, arrays
  update = functools.partial(_update, fn, chunk=chunk)
  large = functools.partial(_update, fn, chunk=max(chunk, LARGE))
  run = by_platform(
    update, cpu=functools.partial(update, block=block),
    cuda=functools.partial(large, sums=lazy(f"{_HERE}.gpu_rows", "sum_sorted")),
    tpu=functools.partial(large, sums=_tpu_sums, apart=True),
  )  # fmt: skip
  return run(ids, weights, vectors, arrays, carry)


def _update(
  fn, ids, weights, vectors, arrays, carry, *, chunk: int, block: int = WHOLE,
  sums: Callable | None = None, apart: bool = False,
):  # fmt: skip
  """See `update_rows`.

  Args:
    apart: a chunk's new rows are all there before one is written: XLA for TPUs else reads bfloat16
      rows inside of the scatter, for which it copies the whole table, chunk by chunk.
  """
  rows = jax.tree.leaves(arrays)[0].shape[0]

  def visit(loop, row, rank, gradient, live):
    carry, arrays = loop
    at = jnp.minimum(row, rows - 1)
    old = jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), arrays)
    carry, new = fn(carry, gradient, old, live)
    new = jax.lax.optimization_barrier(new) if apart else new
    put = lambda a, b: a.at[row].set(b.astype(a.dtype), **PUT)  # noqa: E731
    return carry, jax.tree.map(put, arrays, new)

  return _visit(ids, weights, vectors, rows, chunk, block, visit, (carry, arrays), sums, skip=apart)


def sum_sorted(
  token: jax.Array, weight: jax.Array, slot: jax.Array, vectors: jax.Array, first: jax.Array,
  size: int,
) -> jax.Array:  # fmt: skip
  """`[size, dv]` float32: in each slot the sum of `weight[r] vectors[token[r]]` over its reads r.

  Args:
    token, weight: `[R]`, of the reads.
    slot: `[R]`, ascending from 0 or 1 without gaps.
    vectors: `[T, dv]`.   first: `[dv]`, what slot 0 holds to begin with.
    size: slots. Those after the last read's hold anything.
  """
  each = _weighted(token, weight, vectors)
  start = jnp.zeros((size, vectors.shape[1]), jnp.float32).at[0].set(first)
  return start.at[slot].add(each, mode="promise_in_bounds", indices_are_sorted=True)


def _weighted(token, weight, vectors) -> jax.Array:
  """What each read adds to its row, `[R, dv]`."""
  return weight.astype(jnp.float32)[:, None] * vectors.at[token].get(mode="promise_in_bounds")


_tpu_sums = functools.partial(lazy(f"{_HERE}.tpu_rows", "sum_sorted"), interpret=False)


def _read(order, weights) -> tuple[jax.Array, jax.Array]:
  """Token and weight of each read."""
  return order // weights.shape[1], weights.reshape(-1).at[order].get(mode="promise_in_bounds")


def _visit(
  ids, weights, vectors, rows: int, chunk: int, block: int, fn: Callable, carry: Any,
  sums: Callable | None = None, *, skip: bool = False,
):  # fmt: skip
  """Hands each touched row to `fn` once, complete, in ascending order, about a chunk at a time.

  Args:
    sums: a kernel in place of `sum_sorted`.
    skip: chunks of padding cost nothing: on a mesh, most reads are of other devices' rows.
    block: R, the greatest number of rows for `fn`.
    fn: `(carry, row [R], rank [R], gradient [R, dv], live [R]) -> carry`; where `live` is false,
      the gradient is 0 and rows are N and more, ascending, for a scatter to drop.
  """
  chunk = min(chunk, ids.size)
  block = min(block, chunk + 1)
  size = -(-(chunk + 1) // block) * block  # slots: a chunk's rows, and one that it goes on with
  reads = sort_reads(ids, rows)
  # One read of padding at least: the row of the last read of a chunk waits for the next chunk.
  more = chunk - ids.size % chunk
  last = reads.rank[-1:] + (reads.row[-1:] < rows)
  pad = lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, (more,))]).reshape(-1, chunk)  # noqa: E731
  row, rank = pad(reads.row, jnp.int32(rows)), pad(reads.rank, last)
  order = pad(reads.order, jnp.int32(0))
  slots = jnp.arange(size, dtype=jnp.int32)
  sums = sums or sum_sorted

  def body(loop, reads):
    carry, begun = loop
    row, order, rank = reads
    local = rank - begun["rank"]  # slot 0: the row that the chunk before left open
    # Padding comes last, and its slot is never handed on.
    summed = sums(*_read(order, weights), local, vectors, begun["sum"], size)
    found = (rows + slots).at[0].set(begun["row"])
    found = found.at[local].set(row, mode="promise_in_bounds", indices_are_sorted=True)
    end = local[-1]
    live = (slots < end) & (found < rows)
    found, ranks = jnp.where(live, found, rows + slots), begun["rank"] + slots

    def hand(carry, start):
      cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, block)  # noqa: E731
      gradient = jnp.where(cut(live)[:, None], cut(summed), 0)
      return fn(carry, cut(found), cut(ranks), gradient, cut(live))

    if size == block:
      carry = hand(carry, 0)
    else:
      more = lambda loop: loop[1] < end  # noqa: E731
      step = lambda loop: (hand(*loop), loop[1] + block)  # noqa: E731
      carry = jax.lax.while_loop(more, step, (carry, jnp.zeros_like(end)))[0]
    return (carry, {"rank": rank[-1], "row": row[-1], "sum": summed[end]}), None

  def body_or_nothing(loop, reads):
    some = (reads[0][0] < rows) | (loop[1]["row"] < rows)  # to sum, or left open
    return jax.lax.cond(some, body, lambda loop, _: (loop, None), loop, reads)

  run = body_or_nothing if skip else body
  begun = {"rank": jnp.int32(0), "row": reads.row[0], "sum": jnp.zeros(vectors.shape[1])}
  return jax.lax.scan(run, (carry, begun), (row, order, rank))[0][0]
