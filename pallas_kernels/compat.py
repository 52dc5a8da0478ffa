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
    # Inside `jax.jit` only the abstract mesh can be asked; it names its devices too.
    device = jax.sharding.get_abstract_mesh().abstract_device
    return _describe(jax.devices()[0] if device is None else device)
  except Exception:  # a backend that does not start
    return Chip()


def _describe(device) -> Chip:
  platform, kind = device.platform, device.device_kind
  if platform == "tpu":
    return Chip("tpu", kind, sparse_cores=_sparse_cores())
  if platform in ("gpu", "cuda"):
    return Chip("cuda", kind, capability=_capability(device))
  return Chip(platform, kind)


def _capability(device) -> int:
  """Of a GPU, or of the one of its kind that is here: an abstract device does not say."""
  for one in (device, *jax.devices()):
    capability = getattr(one, "compute_capability", None)
    if capability and one.device_kind == device.device_kind:
      return int(str(capability).replace(".", ""))
  return 0


def _sparse_cores() -> int:
  from jax.experimental.pallas import tpu

  info = tpu.get_tpu_info().sparse_core  # works ahead of time, under `jax.set_mesh`
  return 0 if info is None else info.num_cores


def interpret(asked):
  """What a TPU kernel hands to `pallas_call` as `interpret`.

  Args:
    asked: None from whoever named the kernel: it is interpreted if the program is traced for a CPU.
      Anything else is handed on; False is for a branch that is lowered for a TPU wherever traced.
  """
  return chip().platform == "cpu" if asked is None else asked
