"""Parameters with logical axes, and models as plain pytrees: the only file that touches Flax's
less stable names."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core.state import Axes, stack_depths, stack_key

M = TypeVar("M", bound=nnx.Module)

Param = nnx.Param
BatchStat = nnx.BatchStat


@nnx.register_variable_name("memjax_tables", overwrite=True)  # its collection in Linen
class Table(nnx.Param):
  """A parameter `[rows, value]` that is looked up sparsely and may train by touched rows."""


@nnx.register_variable_name("memjax_fixed", overwrite=True)
class Fixed(nnx.Variable):
  """An array that is saved but never trained: permutations, hash planes, frozen bases."""


def param(
  rngs: nnx.Rngs, init, shape, *, axes: tuple[str, ...], dtype=jnp.float32, kind: type = nnx.Param
):
  """Makes a parameter.

  Args:
    rngs: source of the key.
    init: `(key, shape, dtype) -> array`, as in `jax.nn.initializers`.
    shape: its shape.
    axes: one logical name an axis (`"embed"`, `"heads"`, `"rows"`, ...), mapped to a mesh by
      `core.sharding`.
    dtype: its dtype.
    kind: `Param`, `Table`, `Fixed` or `BatchStat`.
  """
  if len(axes) != len(shape):
    raise ValueError(f"axes={axes} names {len(axes)} axes of a parameter of shape {tuple(shape)}")
  return kind(init(rngs.params(), tuple(shape), dtype), axes=tuple(axes))


def is_variable(node) -> bool:
  """Whether a node of a model's pytree is a parameter or another variable."""
  return isinstance(node, nnx.Variable)


def _part(key) -> str:
  for attribute in ("name", "key", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def _named_leaves(tree) -> list[tuple[str, Any]]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
  return [("/".join(map(_part, path)), node) for path, node in flat]


def variables(model) -> dict[str, nnx.Variable]:
  """The variables of a model by name (`"body/layers/0+2x4/memory/query/kernel"`); layers in a
  stack share one entry."""
  return {name: node for name, node in _named_leaves(model) if is_variable(node)}


def variable_axes(model) -> dict[str, Axes]:
  """Logical axes of every variable of a model; `"layers"` comes first where layers are stacked."""
  return {name: _axes_of(name, node) for name, node in variables(model).items()}


def _axes_of(name: str, variable) -> Axes:
  own = tuple(variable.get_metadata().get("axes") or ())
  stacked = any(stack_depths(part) is not None for part in name.split("/"))
  return Axes(("layers", *own) if stacked else own)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rest:
  """What `split` leaves beside the trainable arrays: other arrays by name, and the model's
  structure (static)."""

  arrays: dict[str, Any]
  names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
  structure: Any = dataclasses.field(metadata={"static": True})


def split(model, freeze: Callable[[str], bool] | None = None) -> tuple[dict[str, jax.Array], Rest]:
  """Splits a model into what is trained and the rest, to differentiate and optimise the first.

  Args:
    model: any module.
    freeze: `name -> bool`; True keeps that parameter out of training.

  Returns:
    trainable: `{name: array}` of the `Param`s and `Table`s that are not frozen.
    rest: everything else; `join(trainable, rest)` is the model again.
  """
  named = _named_leaves(model)
  leaves, structure = jax.tree.flatten(model)
  trainable, arrays = {}, {}
  for (name, node), array in zip(named, leaves, strict=True):
    trained = isinstance(node, nnx.Param) and not (freeze is not None and freeze(name))
    (trainable if trained else arrays)[name] = array
  return trainable, Rest(arrays, tuple(name for name, _ in named), structure)


def join(trainable: dict[str, jax.Array], rest: Rest):
  """The model whose parts `split` returned."""
  both = {**rest.arrays, **trainable}
  return jax.tree.unflatten(rest.structure, [both[name] for name in rest.names])


def hold(model, names: Collection[str]):
  """The model with these tables held: constant, and read by `core.lookup` alone.

  A scan over layers hands a held table whole to the lookups in its body, `[L, N, dv]`, instead of a
  copy of each layer's part. For training by touched rows, which holds its tables so.
  """
  nodes, structure = jax.tree.flatten(model, is_leaf=is_variable)
  for i, (name, node) in enumerate(_named_leaves(model)):
    if name in names:
      nodes[i] = type(node)(node[...], **{**node.get_metadata(), "held": True})
  return jax.tree.unflatten(structure, nodes)


def without_held(tree) -> tuple[list, Callable[[list], Any]]:
  """The leaves and variables of a tree but for held tables, as inputs of a scan; and the function
  that makes the tree of (slices of) them."""
  nodes, structure = jax.tree.flatten(tree, is_leaf=is_variable)
  held = {
    i: v for i, v in enumerate(nodes) if is_variable(v) and v.get_metadata().get("held", False)
  }

  def whole(nodes: list):
    return jax.tree.unflatten(structure, [held.get(i, node) for i, node in enumerate(nodes)])

  return [None if i in held else node for i, node in enumerate(nodes)], whole


def submodules(model) -> Iterator[nnx.Module]:
  """Every module inside a model, itself first."""
  if not isinstance(model, nnx.Module):
    return
  yield model
  for value in vars(model).values():
    yield from submodules(value)


def replace(model, **fields):
  """A copy of a model in which every submodule that has the attribute `name` holds the given
  static value instead.

  Parameters are shared with the original: `replace(model, capacity=1024)`, `replace(model,
    use_batch=True)`.

  Raises:
    AttributeError: no submodule has such an attribute.
  """
  copy = jax.tree.map(lambda a: a, model)
  for name, value in fields.items():
    owners = [m for m in submodules(copy) if name in vars(m)]
    if not owners:
      raise AttributeError(
        f"no module inside {type(model).__name__} has an attribute {name!r} to replace"
      )
    for owner in owners:
      setattr(owner, name, value)
  return copy


def flatten(tree) -> dict[str, Any]:
  """Any pytree (model, optimiser state, memory state) as `{"layers/0/q/kernel": array}`, layers
  named by depth.

  Arrays of stacked layers are cut into one entry a depth, so a checkpoint does not depend on how
  layers were grouped.
  """
  flat = {}
  for name, node in _named_leaves(tree):
    array = node[...] if is_variable(node) else node
    for path, index in _depth_names(name):
      flat[path] = array if index is None else array[index]
  return flat


def named_leaves(tree) -> list[tuple[Any, tuple[str, ...], bool]]:
  """For each leaf, in the order of `jax.tree.leaves`: the leaf, the names that `flatten` gives it,
  and whether it stacks layers; then there is one name for each index of its axis 0."""
  found = []
  for (name, _), leaf in zip(_named_leaves(tree), jax.tree.leaves(tree), strict=True):
    paths = _depth_names(name)
    found.append((leaf, tuple(path for path, _ in paths), paths[0][1] is not None))
  return found


def unflatten(template, flat: dict[str, Any]):
  """The pytree of `template`'s structure with the arrays of `flat`, the reverse of `flatten`.

  Raises:
    KeyError: names are missing or left over.   ValueError: a shape differs.
  """
  named, structure = _named_leaves(template), jax.tree.structure(template)
  expected = {path for name, _ in named for path, _ in _depth_names(name)}
  if expected != set(flat):
    missing, extra = sorted(expected - set(flat)), sorted(set(flat) - expected)
    raise KeyError(
      f"names differ: missing {missing[:5]}, not wanted {extra[:5]} "
      f"({len(missing)} missing, {len(extra)} extra)"
    )
  leaves = []
  for name, node in named:
    parts = [flat[path] for path, _ in _depth_names(name)]
    stacked = any(index is not None for _, index in _depth_names(name))
    array = jnp.stack(parts) if stacked else parts[0]
    if array.shape != node.shape:
      raise ValueError(f"{name} has shape {list(array.shape)}; expected {list(node.shape)}")
    leaves.append(array)
  return jax.tree.unflatten(structure, leaves)


def layer_keys(name: str) -> tuple[str, ...]:
  """The keys of the layers that a variable's path goes through: the scope of what they emit."""
  return tuple(key for above, key in itertools.pairwise(name.split("/")) if above == "layers")


def _depth_names(name: str) -> list[tuple[str, int | None]]:
  parts = name.split("/")
  for position, part in enumerate(parts):
    depths = stack_depths(part)
    if depths is not None:
      return [
        ("/".join([*parts[:position], str(d), *parts[position + 1 :]]), i)
        for i, d in enumerate(depths)
      ]
  return [(name, None)]


def stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
  """`count` modules made by `make(rngs)` with their parameters stacked on axis 0, to be run by
  `scan`."""
  return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


__all__ = [
  "BatchStat",
  "Fixed",
  "Param",
  "Rest",
  "Table",
  "flatten",
  "is_variable",
  "hold",
  "join",
  "layer_keys",
  "named_leaves",
  "param",
  "replace",
  "split",
  "stack",
  "stack_key",
  "submodules",
  "unflatten",
  "variable_axes",
  "variables",
  "without_held",
]
