"""The mesh and the sharding rules of a recipe: `config.mesh` and `config.rules`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from ml_collections import config_dict

from memjax.core.sharding import DEFAULT_RULES, Rules, batch_sharding, spec, with_layout

SIZES = {"data": -1, "fsdp": 1, "model": 1, "context": 1}


def add_fields(config: config_dict.ConfigDict) -> None:
  """Gives a recipe the fields `mesh` (sizes of mesh axes, one of which may be -1 and takes what is
  left), `rules` (the mesh axes that cut each logical axis, `()` for none), and `context` (what is
  done where time is cut)."""
  config.mesh = config_dict.ConfigDict(SIZES)
  config.rules = config_dict.ConfigDict(
    {name: _names(axes) for name, axes in DEFAULT_RULES.items()}
  )
  config.context = context = config_dict.ConfigDict()
  context.method = "ring"  # how attention meets the keys of other pieces: ring | all_to_all
  context.gather_time = False  # memories that go token by token get all of them, or are refused


def mesh_of(config, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh that `config.mesh` describes, over all devices of all processes.

  Neighbours on the machine's network are neighbours on the mesh, the last axes being the nearest.

  Args:
    config: a recipe; one without the field takes one axis, `data`.
    devices: other devices than those that are there, such as a topology's.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  given = dict(config.get("mesh", SIZES))
  unknown = sorted(set(given) - set(SIZES))
  if unknown:
    raise ValueError(f"config.mesh has no axis {unknown[0]!r}; its axes are {', '.join(SIZES)}")
  sizes = _fill({name: given.get(name, 1) for name in SIZES}, len(devices))
  shape = tuple(sizes.values())
  if devices[0].platform != "tpu":  # by process: the first axes cross from one to the next
    return Mesh(np.asarray(devices).reshape(shape), tuple(sizes))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if slices == 1:
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  else:
    outer = _between_slices(sizes, slices)
    inner = tuple(size // ways for size, ways in zip(shape, outer, strict=True))
    arranged = mesh_utils.create_hybrid_device_mesh(
      inner, outer, devices, allow_split_physical_axes=True
    )
  return Mesh(arranged, tuple(sizes))


def _between_slices(sizes: dict[str, int], slices: int) -> tuple[int, ...]:
  """The part of each axis that crosses from one TPU slice to the next, over the slow network: the
  first axis that has room."""
  axis = next((name for name, size in sizes.items() if size % slices == 0), None)
  if axis is None:
    raise ValueError(f"config.mesh={sizes}: no size is a multiple of the {slices} TPU slices")
  return tuple(slices if name == axis else 1 for name in sizes)


def mesh_or_none(config) -> Mesh | None:
  """`mesh_of(config)`; None on one device."""
  mesh = mesh_of(config)
  return mesh if mesh.size > 1 else None


def rules_of(config) -> dict[str, tuple[str, ...]]:
  """The sharding rules of a recipe: `config.rules` over the default ones.

  Raises:
    ValueError: a logical or a mesh axis that there is not.
  """
  rules = {name: _names(axes) for name, axes in DEFAULT_RULES.items()}
  for name, axes in config.get("rules", {}).items():
    if name not in rules:
      raise ValueError(f"config.rules has no logical axis {name!r}; there are {', '.join(rules)}")
    rules[name] = _names(axes)
    wrong = [axis for axis in rules[name] if axis not in SIZES]
    if wrong:
      raise ValueError(f"config.rules.{name}={axes!r}: {wrong[0]!r} is not one of {list(SIZES)}")
  return rules


def share(config, devices: Sequence[Any] | None = None) -> dict[str, int]:
  """Which rows of a batch this process reads: `shard_index` and `shard_count` for `memjax.data`.

  Processes whose devices hold the same rows, as where a mesh axis that does not cut the batch
  crosses from one to the next, read the same.

  Args:
    devices: as of `mesh_of`.

  Raises:
    ValueError: the rows of a process are not one of equally many parts of the batch.
  """
  if jax.process_count() == 1:
    return {"shard_index": 0, "shard_count": 1}
  mesh = mesh_of(config, devices)
  axes = _batch_axes(mesh, rules_of(config))
  order = [mesh.axis_names.index(axis) for axis in axes]
  pieces = math.prod(mesh.shape[axis] for axis in axes)
  held: dict[int, set[int]] = {}
  for place, device in np.ndenumerate(mesh.devices):
    piece = 0
    for axis in order:
      piece = piece * mesh.devices.shape[axis] + place[axis]
    held.setdefault(device.process_index, set()).add(piece)
  own = sorted(held[jax.process_index()])
  size = len(own)
  for pieces_held in map(sorted, held.values()):
    start = pieces_held[0]
    if pieces_held != list(range(start, start + size)) or start % size:
      raise ValueError(
        f"config.mesh={dict(mesh.shape)}: the devices of a process hold rows {pieces_held} of a "
        f"batch in {pieces} parts, not one of equally many parts; let the sizes of the axes that "
        f"cut the batch ({', '.join(axes)}) multiply to a multiple of the number of processes"
      )
  return {"shard_index": own[0] // size, "shard_count": pieces // size}


def _batch_axes(mesh: Mesh, rules: Rules) -> tuple[str, ...]:
  cut = spec(("batch",), mesh, rules)[0]
  return _names(cut)


def layout_of(config) -> dict:
  """Options of `core.sharding.with_layout`."""
  return dict(config.get("context", {}))


def placing(config) -> Callable:
  """`batch -> batch` on the devices: from the rows `[b, T]` that this process has read, arrays
  `[B, T]` cut as the recipe says."""
  mesh = mesh_or_none(config)
  if mesh is None:
    return jax.device_put
  sharding, parts = batch_sharding(mesh, rules_of(config)), share(config)["shard_count"]

  def place(a: np.ndarray) -> jax.Array:
    shape = (a.shape[0] * parts, *a.shape[1:])  # time is read whole, and cut here
    return jax.make_array_from_process_local_data(sharding, a, shape)

  return lambda batch: {name: place(a) for name, a in batch.items()}


def for_few_rows(config, model):
  """The model, for calls whose rows are too few to be cut: tokens lie whole on every device, tables
  where they lay."""
  mesh = mesh_or_none(config)
  if mesh is None:
    return model
  return with_layout(model, mesh, rules_of(config) | {"batch": (), "time": ()}, **layout_of(config))


def _names(axes) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _fill(sizes: dict[str, int], count: int) -> dict[str, int]:
  wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
  free = [name for name, size in sizes.items() if size == -1]
  if wrong or len(free) > 1:
    raise ValueError(f"config.mesh={sizes}: sizes must be at least 1, and one of them may be -1")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and count % fixed == 0:
    sizes = {**sizes, free[0]: count // fixed}
  if math.prod(sizes.values()) != count:
    raise ValueError(f"config.mesh={sizes} does not fit {count} devices; their product must be so")
  return sizes
