"""Touched rows on a CPU by kernels in C++ (`native`): sorted, summed and trained in one pass.

All raise NotImplementedError where they cannot run: another dtype, another platform, no compiler.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import native
from pallas_kernels.embedding_bag import reads

SORT, ADAM = "memjax_sort_reads", "memjax_adam_rows"


def sort(flat: jax.Array, largest: int) -> tuple[jax.Array, jax.Array]:
  """Integers `[E]` int32 in 0..largest, sorted, and where they stood; equal ones in that order."""
  _register()
  like = jax.ShapeDtypeStruct(flat.shape, jnp.int32)
  run = jax.ffi.ffi_call(SORT, (like, like), vmap_method="sequential")
  return tuple(run(flat, largest=np.int64(largest)))


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
  if any(a.dtype != jnp.float32 for a in (table, first, second)):
    raise NotImplementedError(f"the table is float32 here; got {table.dtype}")
  _register()
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
  return run(sorted_reads.row, sorted_reads.order, *small, table, first, second, **rates)


def _register():
  if jax.default_backend() != "cpu":
    raise NotImplementedError(f"a CPU's kernel; this process computes on {jax.default_backend()}")
  native.register(Path(__file__).with_suffix(".cc"), SORT, ADAM)
