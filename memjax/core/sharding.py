"""Meshes and logical axes: one table of rules maps names to mesh axes, for parameters, states and
batches alike."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core.module import variable_axes
from memjax.core.state import axes

Rules = Mapping[str, str | tuple[str, ...] | None]

DEFAULT_RULES: Rules = {
  "batch": ("data", "fsdp"),
  "embed": "fsdp",
  "heads": "model",
  "kv": None,
  "mlp": "model",
  "vocab": "model",
  "rows": None,
  "half": None,
  "rank": None,
  "keys": None,
  "value": "model",
  "slots": None,
  "memory": None,
  "window": None,
  "layers": None,
  "time": None,
}


def make_mesh(sizes: Mapping[str, int], devices=None) -> Mesh:
  """A mesh with named axes over all devices; one size may be -1 and takes what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  sizes = dict(sizes)
  free = [name for name, size in sizes.items() if size == -1]
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  if len(free) > 1:
    raise ValueError(f"only one mesh axis may be -1, got {free}")
  if free and devices.size % fixed == 0:
    sizes[free[0]] = devices.size // fixed
  if int(np.prod(list(sizes.values()))) != devices.size:
    raise ValueError(
      f"mesh {sizes} does not fit {devices.size} devices; the sizes must multiply to {devices.size}"
    )
  return Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes))


def spec(names: tuple[str, ...], mesh: Mesh, rules: Rules = DEFAULT_RULES) -> PartitionSpec:
  """The partition of an array with logical axes `names`: mesh axes absent from the mesh or already
  used are left out.

  Raises:
    KeyError: a name that the rules do not know.
  """
  used: set[str] = set()
  parts = []
  for name in names:
    if name not in rules:
      raise KeyError(
        f"logical axis {name!r} is not in the sharding rules ({', '.join(rules)}); add one"
      )
    wanted = rules[name] or ()
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    free = tuple(axis for axis in wanted if axis in mesh.axis_names and axis not in used)
    used.update(free)
    parts.append(free if len(free) > 1 else (free[0] if free else None))
  return PartitionSpec(*parts)


def _fit(partition: PartitionSpec, shape, mesh: Mesh, what: str) -> NamedSharding:
  for size, part in zip(shape, partition, strict=False):
    ways = int(
      np.prod([mesh.shape[axis] for axis in (part if isinstance(part, tuple) else (part,)) if axis])
    )
    if size % ways:
      raise ValueError(
        f"{what} of shape {list(shape)} cannot be split as {partition}: "
        f"{size} is not divisible by {ways}"
      )
  return NamedSharding(mesh, partition)


def model_shardings(model, mesh: Mesh, rules: Rules = DEFAULT_RULES):
  """Shardings of a model (concrete or abstract), as a pytree of its structure.

  Raises:
    ValueError: an axis does not divide.
  """
  leaves, structure = jax.tree.flatten(model)
  named = variable_axes(model)
  if len(named) != len(leaves):
    raise TypeError(f"{type(model).__name__} holds arrays outside of variables; make them Fixed")
  made = [
    _fit(spec(n, mesh, rules), a.shape, mesh, name)
    for (name, n), a in zip(named.items(), leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, made)


def state_shardings(state, mesh: Mesh, rules: Rules = DEFAULT_RULES):
  """Shardings of a memory state (concrete or abstract), as a pytree of its structure."""
  return jax.tree.map(
    lambda names, a: _fit(spec(names, mesh, rules), a.shape, mesh, f"state leaf {list(names)}"),
    axes(state),
    state,
  )


def batch_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> NamedSharding:
  """Sharding of `[B, T, ...]` inputs: the batch axis only."""
  return NamedSharding(mesh, spec(("batch",), mesh, rules))
