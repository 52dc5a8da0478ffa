"""Meshes and logical axes: one table of rules maps names to mesh axes, for parameters, states and
batches alike.

`init` makes a model in pieces, `place` cuts one that is there; both tell its lookups how the tables
lie (`core.sharded`), so that the model can then be called, scanned and trained as any other.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core.module import replace, submodules, variable_axes
from memjax.core.state import axes
from memjax.core.table_sharding import Names, TableSharding

M = TypeVar("M")

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


def table_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> TableSharding | None:
  """How tables and tokens lie on a mesh; None where nothing of them is cut.

  Raises:
    ValueError: tokens are cut over a part of the mesh axes that cut a table.
  """

  def cut(*names: str) -> list[Names]:
    parts = [(part,) if isinstance(part, str) else part or () for part in spec(names, mesh, rules)]
    return [tuple(axis for axis in part if mesh.shape[axis] > 1) for part in parts]

  rows, columns = cut("rows", "value")
  batch, time = cut("batch", "time")
  heads = tuple(axis for axis in cut("heads")[0] if axis not in batch + time)
  if not rows + columns + batch + time + heads:
    return None
  return TableSharding(mesh, rows=rows, columns=columns, batch=batch, time=time, heads=heads)


def shardings_of(tree):
  """Where the arrays of a pytree lie: a `NamedSharding` each, None for one that is on no mesh."""

  def where(a):
    return a.sharding if isinstance(a.sharding, NamedSharding) else None

  return jax.tree.map(where, tree)


def sharding_of_tables(model) -> TableSharding | None:
  """What `with_tables` has told the model's lookups."""
  told = (getattr(module, "table_sharding", None) for module in submodules(model))
  return next((sharding for sharding in told if sharding is not None), None)


def with_tables(model: M, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> M:
  """The model, with lookups that know how its tables lie; arrays stay where they are."""
  if not any("table_sharding" in vars(module) for module in submodules(model)):
    return model
  return replace(model, table_sharding=table_sharding(mesh, rules))


def place(model: M, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> M:
  """A model cut over a mesh.

  Raises:
    ValueError: an axis does not divide.
  """
  return with_tables(jax.device_put(model, model_shardings(model, mesh, rules)), mesh, rules)


def init(make: Callable[[], M], mesh: Mesh, rules: Rules = DEFAULT_RULES) -> M:
  """The model that `make()` returns, cut over a mesh from the start.

  No array is ever whole on a device or a host: each device draws its own piece. A key's numbers
  are counted by position (JAX's partitionable Threefry, its default), so a seed gives the same
  model, bit for bit, whatever the mesh and the rules.

  Args:
    make: `lambda: LanguageModel(..., rngs=nnx.Rngs(0))`.

  Raises:
    ValueError: an axis does not divide.
  """
  shardings = model_shardings(jax.eval_shape(make), mesh, rules)
  return with_tables(jax.jit(make, out_shardings=shardings)(), mesh, rules)
