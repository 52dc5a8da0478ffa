"""Kernels for a CPU in C++ (`native`): inner products, and touched rows, sorted and trained.

There is no bag: XLA's form is as fast.

All raise NotImplementedError where they cannot run: another dtype, another platform, no compiler.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import native
from pallas_kernels.embedding_bag import reads

DOT, SORT, SUM, ADAM = NAMES = [
  f"memjax_{name}" for name in ("dot_bag", "sort_reads", "sum_rows", "adam_rows")
]


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """`op.dot_bag` of a table in float32."""
  _register(values)
  run = jax.ffi.ffi_call(
    DOT, jax.ShapeDtypeStruct(ids.shape, jnp.float32), vmap_method="sequential"
  )
  return run(values, ids.astype(jnp.int32), vectors.astype(jnp.float32))


def sort(flat: jax.Array, largest: int) -> tuple[jax.Array, jax.Array]:
  """Integers `[E]` int32 in 0..largest, sorted, and where they stood; equal ones in that order."""
  _register()
  like = jax.ShapeDtypeStruct(flat.shape, jnp.int32)
  run = jax.ffi.ffi_call(SORT, (like, like), vmap_method="sequential")
  row, order = run(flat, largest=np.int64(largest))
  return row, order


def touched(ids, weights, vectors, *, rows: int, size: int) -> tuple[jax.Array, jax.Array]:
  """The ids and the rows of `rows.touched_rows`."""
  _register()
  _check(ids, weights, vectors, [])
  sorted_reads = reads.sort_reads(ids, rows)
  row, rank = sorted_reads.row, sorted_reads.rank
  slot = jnp.where(row < rows, rank, size)
  found = (rows + jnp.arange(size, dtype=jnp.int32)).at[slot].set(row, mode="drop")
  like = jax.ShapeDtypeStruct((size, vectors.shape[1]), jnp.float32)
  run = jax.ffi.ffi_call(SUM, like, vmap_method="sequential")
  factors = (a.astype(jnp.float32) for a in (weights, vectors))
  return found, run(row, sorted_reads.order, rank, *factors, rows=np.int64(rows))


def adam(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, table: jax.Array, first: jax.Array,
  second: jax.Array, numbers: jax.Array, *, b1: float, b2: float, eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:  # fmt: skip
  """Adam on the rows that were read, where g is the gradient `rows.touched_rows` of the table.

  m = b1 m + (1 - b1) factor g,  v = b2 v + (1 - b2) (factor g)^2
  p = p - rate m / (sqrt(scale v) + eps) - decay p

  Args:
    ids: `[T, b]` integer; N is padding.   weights: `[T, b]` float.   vectors: `[T, dv]` float.
    table, first, second: p, m and v, `[N, dv]` float32. Donated, they are updated in place.
    numbers: `[4]` float32: factor, rate, scale, decay.

  Returns:
    table, first, second, and the sum of squares of g, bit for bit repeatable on a machine.
  """
  _register(table, first, second)
  _check(ids, weights, vectors, [table, first, second])
  if ids.size == 0:
    return table, first, second, jnp.float32(0)
  sorted_reads = reads.sort_reads(ids, table.shape[0])
  like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (table, first, second)]
  run = jax.ffi.ffi_call(
    ADAM, (*like, jax.ShapeDtypeStruct((), jnp.float32)), vmap_method="sequential",
    input_output_aliases={5: 0, 6: 1, 7: 2},
  )  # fmt: skip
  small = (a.astype(jnp.float32) for a in (weights, vectors, numbers))
  rates = {"b1": np.float32(b1), "b2": np.float32(b2), "eps": np.float32(eps)}
  new = run(sorted_reads.row, sorted_reads.order, *small, table, first, second, **rates)
  table, first, second, squares = new
  return table, first, second, squares


def _check(ids, weights, vectors, arrays) -> None:
  """C++ reads what it is told to."""
  if ids.shape != weights.shape or ids.ndim != 2 or vectors.shape[:-1] != ids.shape[:1]:
    shapes = [list(a.shape) for a in (ids, weights, vectors)]
    raise ValueError(f"ids, weights and vectors must be [T, b], [T, b] and [T, dv]; got {shapes}")
  if len({a.shape for a in arrays}) > 1 or any(a.shape[1:] != vectors.shape[1:] for a in arrays):
    shapes = [list(a.shape) for a in arrays]
    raise ValueError(f"table and moments must be [N, {vectors.shape[1]}]; got {shapes}")


def _register(*tables: jax.Array):
  if jax.default_backend() != "cpu":
    raise NotImplementedError(f"a CPU's kernel; this process computes on {jax.default_backend()}")
  if any(a.dtype != jnp.float32 for a in tables):
    raise NotImplementedError(f"a table in float32 is needed here; got {tables[0].dtype}")
  native.register(Path(__file__).with_suffix(".cc"), *NAMES)
