"""Vector subcores of a TPU: a kernel on all of them, and what only they can do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import compat


@dataclasses.dataclass(frozen=True)
class Cores:
  """The SparseCores of a chip.

  Attributes:
    cores, subcores: SparseCores, and vector subcores of each.   lanes: of a subcore, 32-bit.
  """

  cores: int
  subcores: int
  lanes: int

  def words(self, table: jax.Array) -> jax.Array:
    """What is handed to the kernel for a table."""
    return table

  def launch(self, body: Callable, out, scratch, cost: pl.CostEstimate, *arrays) -> Any:
    """Runs `body(worker, *refs)` on every subcore."""
    from jax.experimental.pallas import tpu_sc

    mesh = tpu_sc.VectorSubcoreMesh(
      core_axis_name="core", subcore_axis_name="subcore",
      num_cores=self.cores, num_subcores=self.subcores,
    )  # fmt: skip

    def kernel(*refs):
      body(jax.lax.axis_index("core") * self.subcores + jax.lax.axis_index("subcore"), *refs)

    return pl.kernel(
      kernel, out_type=out, mesh=mesh, scratch_types=scratch, cost_estimate=cost,
      name=body.__name__,
      compiler_params=pltpu.CompilerParams(use_tc_tiling_on_sc=True, needs_layout_passes=False),
    )(*arrays)  # fmt: skip

  def gather(self, table, rows, columns, to, done):
    """An indirect copy of `table[rows, columns]`, with `start` and `wait`."""
    if table.dtype.itemsize == 2:
      table = table.bitcast(jnp.int32)
    return pltpu.make_async_copy(table.at[rows, columns], to, done)

  def loop(self, columns: int, body: Callable, carry):
    """`carry = body(column, carry)` for every `lanes` columns, in whatever order."""
    from jax.experimental.pallas import tpu_sc

    return tpu_sc.parallel_loop(0, columns, self.lanes, carry=carry)(body)


def cores() -> Cores:
  """Those of the chip that the program is traced for.

  Raises:
    NotImplementedError: it has none, or is not known.
  """
  chip = compat.chip()
  if not chip.sparse_cores:
    raise NotImplementedError(f"SparseCore kernels need a TPU that has one; got {chip.kind}")
  info = pltpu.get_tpu_info().sparse_core
  assert info is not None
  return Cores(info.num_cores, info.num_subcores, info.num_lanes)
