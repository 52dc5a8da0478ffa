"""Meshes and logical axes: one table of rules maps names to mesh axes, for parameters, states and
batches alike.

`init` makes a model in pieces, `place` cuts one that is there; both tell its lookups how the tables
lie (`core.sharded`) and its layers how the tokens do (`core.sequence_sharding`), so that the model
can then be called, scanned and trained as any other. `check_layout` says beforehand what is wrong.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core.module import replace, submodules, variable_axes
from memjax.core.sequence_sharding import SequenceSharding
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
  "time": "context",
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
  """Sharding of `[B, T, ...]` inputs: the batch axis, and time where the mesh cuts it."""
  batch, time = spec(("batch", "time"), mesh, rules)
  return NamedSharding(mesh, PartitionSpec(batch) if time is None else PartitionSpec(batch, time))


def _cuts(mesh: Mesh, rules: Rules) -> Callable[..., list[Names]]:
  """The mesh axes of more than one device that cut logical axes of one array."""

  def cut(*names: str) -> list[Names]:
    parts = [(part,) if isinstance(part, str) else part or () for part in spec(names, mesh, rules)]
    return [tuple(axis for axis in part if mesh.shape[axis] > 1) for part in parts]

  return cut


def table_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> TableSharding | None:
  """How tables and tokens lie on a mesh; None where nothing of them is cut.

  Raises:
    ValueError: tokens are cut over a part of the mesh axes that cut a table.
  """
  cut = _cuts(mesh, rules)
  rows, columns = cut("rows", "value")
  batch, time, heads = cut("batch", "time", "heads")
  if not rows + columns + batch + time + heads:
    return None
  return TableSharding(mesh, rows=rows, columns=columns, batch=batch, time=time, heads=heads)


def embedding_sharding(mesh: Mesh, rules: Rules = DEFAULT_RULES) -> TableSharding | None:
  """How a table of embeddings `[vocab, embed]` lies on a mesh; None where it is not cut."""
  cut = _cuts(mesh, rules)
  rows, columns = cut("vocab", "embed")
  batch, time = cut("batch", "time")
  if not rows + columns:
    return None
  return TableSharding(mesh, rows=rows, columns=columns, batch=batch, time=time)


def sequence_sharding(
  mesh: Mesh, rules: Rules = DEFAULT_RULES, *, method: str = "ring", gather_time: bool = False
) -> SequenceSharding | None:
  """How tokens and heads lie on a mesh; None where nothing of them is cut.

  Args:
    method, gather_time: see `SequenceSharding`.
  """
  batch, time, heads = _cuts(mesh, rules)("batch", "time", "heads")
  if not batch + time + heads:
    return None
  return SequenceSharding(mesh, batch, time, heads, method, gather_time)


def shardings_of(tree):
  """Where the arrays of a pytree lie: a `NamedSharding` each, None for one that is on no mesh."""

  def where(a):
    return a.sharding if isinstance(a.sharding, NamedSharding) else None

  return jax.tree.map(where, tree)


def sharding_of_tables(model) -> TableSharding | None:
  """What `with_layout` has told the model's lookups."""
  told = (getattr(module, "table_sharding", None) for module in submodules(model))
  return next((sharding for sharding in told if sharding is not None), None)


def with_layout(
  model: M, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, method: str = "ring",
  gather_time: bool = False,
) -> M:  # fmt: skip
  """The model, with lookups that know how its tables lie, and layers that know how its tokens do;
  arrays stay where they are.

  Args:
    method, gather_time: see `SequenceSharding`.
  """
  told = {
    "table_sharding": table_sharding(mesh, rules),
    "embedding_sharding": embedding_sharding(mesh, rules),
    "sequence_sharding": sequence_sharding(mesh, rules, method=method, gather_time=gather_time),
  }
  known = {name for module in submodules(model) for name in told if name in vars(module)}
  return replace(model, **{name: told[name] for name in known}) if known else model


def check_layout(
  model, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, batch: int | None = None,
  length: int | None = None, method: str = "ring", gather_time: bool = False,
) -> None:  # fmt: skip
  """Raises ValueError with the reason if a model (concrete or abstract) cannot lie on a mesh so.

  Args:
    batch, length: rows and tokens of a call, if known.
    method, gather_time: see `SequenceSharding`.
  """
  table = table_sharding(mesh, rules)
  tokens = sequence_sharding(mesh, rules, method=method, gather_time=gather_time)
  for module in submodules(model):
    check = getattr(module, "check_layout", None)
    if check is not None and tokens is not None:
      check(tokens, length)
    heads = getattr(module, "heads", None)
    if table is not None and "table_sharding" in vars(module) and heads is not None:
      table.divide(heads=(heads, table.heads))
  if tokens is not None and batch is not None:
    tokens.divide(batch=(batch, tokens.batch))
  if tokens is not None and length is not None:
    tokens.divide(length=(length, tokens.time))
  model_shardings(model, mesh, rules)
  if batch is not None and hasattr(model, "init_state"):
    state_shardings(jax.eval_shape(lambda m: m.init_state(batch), model), mesh, rules)


def token_order(
  model, mesh: Mesh, rules: Rules = DEFAULT_RULES, *, length: int
) -> np.ndarray | None:  # fmt: skip
  """The order `[T] int` in which a model takes the tokens of a row (ids, targets, flags:
  `a[:, order]`); None: as they are.

  It differs where time is cut and the model works in several segments: each device then holds a
  piece of every segment. A loss that sums over tokens does not depend on it.
  """
  tokens = sequence_sharding(mesh, rules)
  if tokens is None or not tokens.time or length <= model.granularity or model.granularity == 1:
    return None
  return tokens.token_order(length, model.granularity)


def place(model: M, mesh: Mesh, rules: Rules = DEFAULT_RULES, **options) -> M:
  """A model cut over a mesh.

  Args:
    **options: of `with_layout`.

  Raises:
    ValueError: an axis does not divide.
  """
  placed = jax.device_put(model, model_shardings(model, mesh, rules))
  return with_layout(placed, mesh, rules, **options)


def init(make: Callable[[], M], mesh: Mesh, rules: Rules = DEFAULT_RULES, **options) -> M:
  """The model that `make()` returns, cut over a mesh from the start.

  No array is ever whole on a device or a host: each device draws its own piece. A key's numbers
  are counted by position (JAX's partitionable Threefry, its default), so a seed gives the same
  model, bit for bit, whatever the mesh and the rules.

  Args:
    make: `lambda: LanguageModel(..., rngs=nnx.Rngs(0))`.
    **options: of `with_layout`.

  Raises:
    ValueError: an axis does not divide.
  """
  shardings = model_shardings(jax.eval_shape(make), mesh, rules)
  return with_layout(jax.jit(make, out_shardings=shardings)(), mesh, rules, **options)
