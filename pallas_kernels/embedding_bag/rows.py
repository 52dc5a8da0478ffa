"""The gradient of a table as the rows that were touched: merged, sorted, never of the table's size.

Reads (t, j) are sorted by row, stably, so that equal rows are summed in one order whatever the
machine. `update_rows` goes over them a chunk at a time (on a CPU: over rows, see `row_bags`) and
hands complete rows to an optimiser: not even the touched rows all stand in memory at once.

E = T * b reads, C of them in a chunk, U = min(N, E) rows at most.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import by_platform, lazy
from pallas_kernels.embedding_bag import row_bags
from pallas_kernels.embedding_bag.reads import sort_reads
from pallas_kernels.embedding_bag.row_bags import PUT

CHUNK = 2**16  # reads in a chunk: an accelerator pays for every call

_HERE = "pallas_kernels.embedding_bag"


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


def touched_rows(ids: jax.Array, weights: jax.Array, vectors: jax.Array, rows: int) -> TouchedRows:
  """The gradient of a table as touched rows: `dV[r] = sum of weights[t, j] vectors[t]`.

  Args:
    ids: `[T, b]` integer; N = `rows` is padding.
    weights: `[T, b]` float.   vectors: `[T, dv]` float.   rows: N.

  Returns:
    U = min(N, T b) rows, summed in float32 in an order that the reads give: bit for bit repeatable.
  """
  size = min(rows, ids.size)
  found = rows + jnp.arange(size, dtype=jnp.int32)
  if ids.size == 0:
    return TouchedRows(found, jnp.zeros((0, vectors.shape[1])), jnp.int32(0))
  sizes = {"rows": rows, "size": size}
  best = by_platform(
    functools.partial(row_bags.touched, **sizes),
    cpu=functools.partial(lazy(f"{_HERE}.cpu", "touched"), **sizes),
    cuda=functools.partial(lazy(f"{_HERE}.gpu_rows", "touched"), **sizes),
    tpu=functools.partial(_touched_at_once, **sizes),
  )
  found, summed = best(ids, weights, vectors)
  return TouchedRows(found, summed, jnp.sum(found < rows, dtype=jnp.int32))


def _touched_at_once(ids, weights, vectors, *, rows: int, size: int):
  """The ids and the rows of `touched_rows` by a TPU's kernel, all reads in one call."""
  reads = sort_reads(ids, rows)
  found = (rows + jnp.arange(size, dtype=jnp.int32)).at[reads.rank].set(reads.row, mode="drop")
  first = jnp.zeros(vectors.shape[1])
  summed = _tpu_sums(*_read(reads.order, weights), reads.rank, vectors, first, size)
  return found, jnp.where((found < rows)[:, None], summed, 0)


def update_rows(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, arrays: Any,
  fn: Callable | Sequence[Callable], carry: Any, *, chunk: int = CHUNK,
) -> tuple[Any, Any]:  # fmt: skip
  """Applies `fn` to every touched row of a table and of what stands beside it, each row once.

  Args:
    ids, weights, vectors: as for `touched_rows`.
    arrays: a pytree of `[N, ...]`: the table, its moments. Donated, they are updated in place.
    fn: `(carry, gradient [R, dv] float32, rows, live [R] bool) -> (carry, rows)`, where `rows` has
      the structure of `arrays` with leaves `[R, ...]`; those that it returns as they came are left
      alone. Where `live` is false the gradient is 0, and what it returns is dropped; its carry must
      not depend on those rows. Or several, each of which sees what the one before made of the rows:
      a CPU writes those before it goes on, and need not make them twice.
    carry: a pytree that is handed from call to call, in ascending order of rows.
    chunk: reads that are summed at once; temporaries are of `[chunk, dv]`. Not on a CPU, where they
      are of `row_bags.BLOCK_BYTES`.

  Returns:
    carry, and the arrays with their touched rows replaced.
  """
  if ids.size == 0:
    return carry, arrays
  fns = (fn,) if callable(fn) else tuple(fn)
  update = functools.partial(_update, fns, chunk=chunk)
  run = by_platform(
    update, cpu=functools.partial(row_bags.update, fns),
    cuda=functools.partial(update, sums=lazy(f"{_HERE}.gpu_rows", "sum_sorted")),
    tpu=functools.partial(update, sums=_tpu_sums, apart=True),
  )  # fmt: skip
  return run(ids, weights, vectors, arrays, carry)


def _update(
  fns: Sequence[Callable], ids, weights, vectors, arrays, carry, *, chunk: int,
  sums: Callable | None = None, apart: bool = False,
):  # fmt: skip
  """See `update_rows`.

  Args:
    apart: a chunk's new rows are all there before one is written: XLA for TPUs else reads bfloat16
      rows inside of the scatter, for which it copies the whole table, chunk by chunk.
  """
  rows = jax.tree.leaves(arrays)[0].shape[0]

  def visit(loop, row, gradient, live):
    carry, arrays = loop
    at = jnp.minimum(row, rows - 1)
    old = new = jax.tree.map(lambda a: a.at[at].get(mode="promise_in_bounds"), arrays)
    for fn in fns:
      carry, new = fn(carry, gradient, new, live)
    changed = jax.tree.map(lambda b, c: b is not c, old, new)
    new = jax.lax.optimization_barrier(new) if apart else new

    def put(a, b, changed):
      return a.at[row].set(b.astype(a.dtype), **PUT) if changed else a

    return carry, jax.tree.map(put, arrays, new, changed)

  return _visit(ids, weights, vectors, rows, chunk, visit, (carry, arrays), sums, skip=apart)


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
  ids, weights, vectors, rows: int, chunk: int, fn: Callable, carry: Any,
  sums: Callable | None = None, *, skip: bool = False,
):  # fmt: skip
  """Hands each touched row to `fn` once, complete, in ascending order, about a chunk at a time.

  Args:
    sums: a kernel in place of `sum_sorted`.
    skip: chunks of padding cost nothing: on a mesh, most reads are of other devices' rows.
    fn: `(carry, row [R], gradient [R, dv], live [R]) -> carry`; where `live` is false, the gradient
      is 0 and rows are N and more, ascending, for a scatter to drop.
  """
  chunk = min(chunk, ids.size)
  size = chunk + 1  # slots: a chunk's rows, and one that it goes on with
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
    gradient = jnp.where(live[:, None], summed, 0)
    carry = fn(carry, jnp.where(live, found, rows + slots), gradient, live)
    return (carry, {"rank": rank[-1], "row": row[-1], "sum": summed[end]}), None

  def body_or_nothing(loop, reads):
    some = (reads[0][0] < rows) | (loop[1]["row"] < rows)  # to sum, or left open
    return jax.lax.cond(some, body, lambda loop, _: (loop, None), loop, reads)

  run = body_or_nothing if skip else body
  begun = {"rank": jnp.int32(0), "row": reads.row[0], "sum": jnp.zeros(vectors.shape[1])}
  return jax.lax.scan(run, (carry, begun), (row, order, rank))[0][0]
