"""Names of machines: `v5p:4x8x8` (TPU chips on a torus), `h100:64` (GPUs in hosts of eight)."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from experiments.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips and how they are joined.

  Attributes:
    name: as given.   chip: of the table.
    sizes: of the torus; for GPUs their number.
    devices: JAX's descriptions of TPU devices, which need not be there; None for GPUs.
  """

  name: str
  chip: Chip
  sizes: tuple[int, ...]
  devices: Sequence[Any] | None

  @property
  def chips(self) -> int:
    """Their number."""
    return math.prod(self.sizes)

  def wraps(self, dimension: int) -> bool:
    """Whether a dimension of the torus is closed to a ring: of v5e and v6e 16 chips are, of the
    others each multiple of 4."""
    size = self.sizes[dimension]
    return size == 16 if self.chip.torus == 2 else size % 4 == 0


def find(name: str) -> Topology:
  """The topology of a name.

  Raises:
    ValueError: there is none of that name; says which there are.
  """
  match = re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)", name)
  if match is None:
    raise ValueError(f"--topology={name!r} is no topology; {_examples()}")
  kind, sizes = match.group(1), tuple(int(n) for n in match.group(2).split("x"))
  if kind not in CHIPS:
    raise ValueError(
      f"--topology={name}: {kind!r} is not one of the chips {', '.join(CHIPS)}; {_examples()}"
    )
  chip = CHIPS[kind]
  dimensions = max(chip.torus, 1)
  if len(sizes) != dimensions:
    form = "x".join("ABC"[:dimensions]) if chip.torus else "N"
    raise ValueError(f"--topology={name}: {kind} takes {kind}:{form}; {_examples()}")
  if chip.torus and math.prod(sizes) > chip.ici_chips:
    raise ValueError(
      f"--topology={name} has {math.prod(sizes)} chips, but a pod of {kind} joins {chip.ici_chips}"
    )
  if not chip.torus and (sizes[0] < 1 or sizes[0] > chip.host_chips and sizes[0] % chip.host_chips):
    raise ValueError(f"--topology={name}: {sizes[0]} GPUs do not fill hosts of {chip.host_chips}")
  return Topology(name, chip, sizes, _tpu_devices(name) if chip.torus else None)


def stand_in(machine: Topology):
  """As many TPU devices as a topology has GPUs, to compile for: partitioner and buffers are the
  same compiler's, kernels and layouts are not.

  Raises:
    ValueError: there are no so many.
  """
  count = machine.chips
  if count > 2 and count % 4:
    raise ValueError(f"--topology={machine.name}: plans need 1, 2 or a multiple of 4 GPUs")
  name = f"v5e:1x{count}" if count <= 2 else f"v5p:2x2x{count // 4}"
  return _tpu_devices(name)


def has_libtpu() -> bool:
  """Whether this machine can compile for TPUs."""
  return importlib.util.find_spec("libtpu") is not None


def _tpu_devices(name: str):
  if not has_libtpu():
    raise ValueError("compiling for TPUs needs libtpu: pip install -e '.[aot]'")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not look for a TPU host
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  except Exception as error:  # whatever the compiler's library raises
    reason = str(error).splitlines()[0]
    raise ValueError(f"--topology={name} is refused ({reason}); {_examples()}") from error


def _examples() -> str:
  return (
    "topologies look like v5e:4x4 (to 16x16), v6e:16x16, v5p:2x2x1, v5p:4x8x8, tpu7x:4x4x4, "
    "and for GPUs h100:64"
  )
