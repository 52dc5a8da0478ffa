"""NVIDIA GPU: one program per token and block of columns, which holds its columns in registers.

Rows go from memory straight into registers: a program first issues the loads of several rows
(`IN_FLIGHT` bytes, 8 to 16 bytes a thread), then adds them up in float32. Compiled for sm_90a at
128 rows of 512, 1024 or 2048 columns that takes 56 to 86 registers and spills none, so 5 to 8
programs share a multiprocessor with 80 KiB or more under way: three times what bandwidth times
latency asks for. Only the partial sums of a `dot_bag` go through shared memory.

The bodies below are the same for both compilers: Mosaic GPU (Hopper and newer; columns in multiples
of 128) and Triton (Ampere, and any number of columns). Rows are addressed by (row, column), whose
offsets are 64-bit in both where the table is large.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import compat

THREADS = 128  # of a program
COLUMNS = 2048  # that a program holds at most: 16 float32 a thread
IN_FLIGHT = 16384  # bytes of rows that a program loads before it uses them
DTYPES = ("float32", "bfloat16", "float16")


def embedding_bag(values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """See `op.embedding_bag`.

  Raises:
    NotImplementedError: the chip is unknown or older than Ampere, or has no kernel for the dtype.
  """
  return run_bag(backend(values), values, ids, weights)


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """See `op.dot_bag`; raises as `embedding_bag` does."""
  return run_dots(backend(values, vectors), values, ids, vectors)


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Columns over a warpgroup's threads, by Mosaic GPU.

  Attributes:
    columns: dv, a multiple of 128.   itemsize: bytes of the table's dtype.
    interpret: parameters of the GPU interpreter, or None.
  """

  columns: int
  itemsize: int
  interpret: Any = None

  @functools.cached_property
  def block(self) -> int:
    """Columns of a program: the largest part of dv that it can hold."""
    each = self.columns // THREADS
    return THREADS * max(n for n in range(1, COLUMNS // THREADS + 1) if each % n == 0)

  def _lay_out(self, x: jax.Array) -> jax.Array:
    from jax.experimental.pallas import mosaic_gpu

    if self.interpret is not None:  # the interpreter knows no layouts
      return x
    vector = 16 // self.itemsize
    while self.block // THREADS % vector:
      vector //= 2
    return mosaic_gpu.layout_cast(x, mosaic_gpu.Layout.WG_STRIDED((self.block,), vec_size=vector))

  def load(self, ref, row, start) -> jax.Array:
    return self._lay_out(ref[row, pl.ds(start, self.block)])

  def store(self, ref, row, start, x) -> None:
    ref[row, pl.ds(start, self.block)] = x

  def zeros(self) -> jax.Array:
    return self._lay_out(jnp.zeros((self.block,), jnp.float32))

  def launch(self, body: Callable, programs: int, shape, cost: pl.CostEstimate, *arrays):
    """Runs `body(program, *refs)` for each program; `cost` has no place in this API."""
    from jax.experimental.pallas import mosaic_gpu

    def kernel(*refs):
      body(jax.lax.axis_index("program"), *refs)

    return mosaic_gpu.kernel(
      kernel, out_type=jax.ShapeDtypeStruct(shape, jnp.float32), interpret=self.interpret,
      grid=(programs,), grid_names=("program",), kernel_name=body.__name__,
      # No program reads what it writes.
      compiler_params=mosaic_gpu.CompilerParams(
        unsafe_no_auto_barriers=True, lowering_semantics=mosaic_gpu.LoweringSemantics.Lane
      ),
    )(*arrays)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Triton:
  """Columns over four warps' threads, by Triton; the last block is masked."""

  columns: int
  itemsize: int
  interpret: Any = None

  @functools.cached_property
  def block(self) -> int:
    return min(COLUMNS, max(THREADS, pl.next_power_of_2(self.columns)))

  def _at(self, ref, row, start):
    """Part of a row, and which of it there is."""
    columns = start + jax.lax.iota(jnp.int32, self.block)
    return ref.at[row, columns], None if self.columns % self.block == 0 else columns < self.columns

  def load(self, ref, row, start) -> jax.Array:
    from jax.experimental.pallas import triton

    part, mask = self._at(ref, row, start)
    return triton.load(part, mask=mask, other=None if mask is None else 0.0)

  def store(self, ref, row, start, x) -> None:
    from jax.experimental.pallas import triton

    part, mask = self._at(ref, row, start)
    triton.store(part, x, mask=mask)

  def zeros(self) -> jax.Array:
    return jnp.zeros((self.block,), jnp.float32)

  def launch(self, body: Callable, programs: int, shape, cost: pl.CostEstimate, *arrays):
    from jax.experimental.pallas import triton

    def kernel(*refs):
      body(pl.program_id(0), *refs)

    return pl.pallas_call(
      kernel, out_shape=jax.ShapeDtypeStruct(shape, jnp.float32), grid=(programs,),
      name=body.__name__, cost_estimate=cost, interpret=self.interpret is not None,
      compiler_params=triton.CompilerParams(num_warps=THREADS // 32, num_stages=1),
    )(*arrays)  # fmt: skip


def backend(table: jax.Array, *others: jax.Array) -> Mosaic | Triton:
  """The compiler for the chip that the program is traced for."""
  chip = compat.chip()
  if chip.capability < 80:
    found = f"{chip.kind}, capability {chip.capability / 10}" if chip.capability else chip.kind
    raise NotImplementedError(f"GPU kernels need compute capability 8.0 or newer; got {found}")
  for array in (table, *others):
    if array.dtype.name not in DTYPES:
      raise NotImplementedError(f"GPU kernels take {', '.join(DTYPES)}; got {array.dtype}")
  columns = table.shape[1]
  if chip.capability >= 90 and columns % THREADS == 0:
    return Mosaic(columns, table.dtype.itemsize)
  if importlib.util.find_spec("jax.experimental.pallas.triton") is None:  # deprecated in jax 0.12
    raise NotImplementedError("this jax has no Pallas for Triton, which this GPU or width needs")
  return Triton(columns, table.dtype.itemsize)


def _ids(ids: jax.Array, rows: int) -> jax.Array:
  """int32, in which no foreign id becomes one of the table's."""
  return (jnp.clip(ids, -1, rows) if ids.dtype.itemsize > 4 else ids).astype(jnp.int32)


def by_groups(begin, end, size: int, step: Callable, carry):
  """`carry = step(first, count, carry)` over begin..end by `size`, then one by one."""
  groups = (end - begin) // size
  body = lambda i, carry: step(begin + i * size, size, carry)  # noqa: E731
  carry = jax.lax.fori_loop(0, groups, body, carry)
  return jax.lax.fori_loop(begin + groups * size, end, lambda i, carry: step(i, 1, carry), carry)


def run_bag(form, values, ids, weights) -> jax.Array:
  """`embedding_bag` by one form: a program per token and block of columns."""
  rows, columns = values.shape
  tokens, bag = ids.shape
  if 0 in (rows, columns, tokens, bag):
    return jnp.zeros((tokens, columns), jnp.float32)
  blocks = pl.cdiv(columns, form.block)
  flying = max(1, min(16, IN_FLIGHT // (form.block * form.itemsize)))

  def embedding_bag(program, values, ids, weights, out):
    token, start = program // blocks, program % blocks * form.block

    def add(first, count, y):
      loaded = []
      for slot in range(count):
        row = ids[token, first + slot]
        meant = (row >= 0) & (row < rows)
        vector = form.load(values, jnp.clip(row, 0, rows - 1), start)
        loaded.append((vector, weights[token, first + slot], meant))
      for vector, weight, meant in loaded:
        y = y + jnp.where(meant, weight.astype(jnp.float32) * vector.astype(jnp.float32), 0.0)
      return y

    y = by_groups(0, bag, flying, add, form.zeros())
    form.store(out, token, start, y)

  read = tokens * bag * (columns * values.dtype.itemsize + blocks * (4 + weights.dtype.itemsize))
  cost = pl.CostEstimate(
    flops=2 * tokens * bag * columns, bytes_accessed=read + 4 * tokens * columns, transcendentals=0
  )
  shape = (tokens, columns)
  return form.launch(embedding_bag, tokens * blocks, shape, cost, values, _ids(ids, rows), weights)


def run_dots(form, values, ids, vectors) -> jax.Array:
  """`dot_bag` by one form: a program per token, which keeps its vector in registers."""
  rows, columns = values.shape
  tokens, bag = ids.shape
  if 0 in (rows, columns, tokens, bag):
    return jnp.zeros((tokens, bag), jnp.float32)
  starts = range(0, columns, form.block)
  flying = max(1, min(16, IN_FLIGHT // (form.block * len(starts) * form.itemsize)))

  def dot_bag(token, values, ids, vectors, out):
    vector = [form.load(vectors, token, start).astype(jnp.float32) for start in starts]

    def dot(first, count, carry):
      loaded = []
      for slot in range(count):
        row = ids[token, first + slot]
        inside = jnp.clip(row, 0, rows - 1)
        loaded.append((row == inside, [form.load(values, inside, start) for start in starts]))
      for slot, (meant, parts) in enumerate(loaded):
        products = [a * b.astype(jnp.float32) for a, b in zip(vector, parts, strict=True)]
        total = jnp.sum(functools.reduce(jnp.add, products))
        out[token, first + slot] = jnp.where(meant, total, 0.0)
      return carry

    by_groups(0, bag, flying, dot, ())

  read = tokens * (bag * (columns * values.dtype.itemsize + 4) + vectors.dtype.itemsize * columns)
  cost = pl.CostEstimate(
    flops=2 * tokens * bag * columns, bytes_accessed=read + 4 * tokens * bag, transcendentals=0
  )
  return form.launch(dot_bag, tokens, (tokens, bag), cost, values, _ids(ids, rows), vectors)
