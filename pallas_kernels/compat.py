"""What moves between JAX versions and chips: one place, so that nothing else asks."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """The chip that a program is traced for.

  Attributes:
    platform: "cpu", "tpu", "cuda" or "unknown".
    kind: as the device says ("TPU v5p", "NVIDIA H100 80GB HBM3"), or "unknown".
    sparse_cores: SparseCores of a TPU chip; 0 without, or unknown.
    capability: a GPU's compute capability times ten (90 for Hopper); 0 for others, or unknown.
  """

  platform: str = "unknown"
  kind: str = "unknown"
  sparse_cores: int = 0
  capability: int = 0


def chip() -> Chip:
  """The chip of the mesh set with `jax.set_mesh`, else of the default backend's first device.

  Never raises: what cannot be told is unknown.
  """
  try:
    mesh = jax.sharding.get_mesh()
    device = jax.devices()[0] if mesh.empty else mesh.devices.flat[0]
    return _describe(device)
  except Exception:  # no mesh, an abstract one, a backend that does not start
    return Chip()


def _describe(device) -> Chip:
  platform, kind = device.platform, device.device_kind
  if platform == "tpu":
    return Chip("tpu", kind, sparse_cores=_sparse_cores())
  if platform in ("gpu", "cuda"):
    capability = str(getattr(device, "compute_capability", "0")).replace(".", "")
    return Chip("cuda", kind, capability=int(capability or 0))
  return Chip(platform, kind)


def _sparse_cores() -> int:
  from jax.experimental.pallas import tpu

  info = tpu.get_tpu_info().sparse_core  # works ahead of time, under `jax.set_mesh`
  return 0 if info is None else info.num_cores
