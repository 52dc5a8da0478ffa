"""Compiling for TPUs on a machine that has none: what the compiler refuses, a chip would refuse.

Needs `libtpu` (the extra `aot`); `requires_libtpu` skips a test where it is not installed.
"""

import functools
import importlib.util
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
WITH_SPARSE_CORES = ("v5p", "v6e", "tpu7x")

# Tests run in several processes, and without a TPU there is nothing that they could share wrongly.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

requires_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="compiling for TPUs needs libtpu: pip install -e '.[aot]'",
)
chips = pytest.mark.parametrize("chip", TOPOLOGIES)
sparse_core_chips = pytest.mark.parametrize("chip", WITH_SPARSE_CORES)


@functools.cache
def _devices(chip: str):
  return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices


def mesh(chip: str, devices: int = 1) -> Mesh:
  """A mesh of one axis "x" over TPU devices that need not exist."""
  return Mesh(np.array(_devices(chip)[:devices]), ("x",))


def lower(chip: str, fn, *shapes, devices: int = 1):
  """`fn` lowered for a chip, and what was lowered can be compiled with `.compile()`.

  Args:
    chip: a key of `TOPOLOGIES`.
    fn: of arrays; jitted here.
    *shapes: pytrees of `jax.ShapeDtypeStruct` (or arrays); those without a sharding are replicated.
    devices: of the mesh, which is also set while `fn` is traced.
  """
  over = mesh(chip, devices)

  def place(shape):
    sharding = getattr(shape, "sharding", None)
    if not isinstance(sharding, NamedSharding):
      sharding = NamedSharding(over, PartitionSpec())
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

  with jax.set_mesh(over):
    return jax.jit(fn).lower(*jax.tree.map(place, shapes))


def kernels(lowered) -> int:
  """How many Pallas kernels a lowered program calls."""
  return lowered.as_text().count("tpu_custom_call")
