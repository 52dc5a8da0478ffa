"""States: frozen pytrees whose every leaf names its axes, so that the batch axis is found by name,
never by position."""

import dataclasses
import re
import typing

import jax
import jax.numpy as jnp

_STACK_KEY = re.compile(r"^(\d+)\+(\d+)x(\d+)$")


class Axes(tuple):
  """Logical axis names of one array; a subclass of tuple so that JAX sees a leaf, not a node."""

  __slots__ = ()


def leaf(*axes: str):
  """Declares a state field that holds one array `[batch, *axes]`.

  Args:
    *axes: logical names of the axes after the batch axis, such as `"slots", "memory"`.
  """
  return dataclasses.field(metadata={"axes": ("batch", *axes)})


@typing.dataclass_transform(frozen_default=True, field_specifiers=(leaf,))
def as_state(cls):
  """Makes `cls` a frozen dataclass and a pytree. Array fields are declared with `leaf(...)`; other
  fields hold states."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@as_state
class Stateless:
  """The state of a memory that has none."""


def stack_key(first: int, stride: int, count: int) -> str:
  """The key under which `count` layers, at depths first, first + stride, ..., stand stacked on
  axis 0: `0+2x4`.

  The one convention for stacked layers: parameters, optimiser states and memory states all use it,
  and `core.module.flatten` expands it into depths.
  """
  return f"{first}+{stride}x{count}"


def stack_depths(key) -> tuple[int, ...] | None:
  """The depths that a key of `stack_key` stands for, or None for any other key."""
  match = _STACK_KEY.match(str(key))
  if match is None:
    return None
  first, stride, count = map(int, match.groups())
  return tuple(range(first, first + stride * count, stride))


def axes(state):
  """The logical axes of every leaf of a state, as a pytree of `Axes` of the state's structure.

  Layers stacked under a `stack_key` have `"layers"` in front of their leaves' axes.

  Raises:
    TypeError: a field holds an array and was not declared with `leaf`.
  """
  names = list(_walk(state, ()))
  return jax.tree.unflatten(jax.tree.structure(state), names)


def _walk(node, prefix, owner="the state"):
  if dataclasses.is_dataclass(node) and not isinstance(node, type):
    for field in dataclasses.fields(node):
      value, declared = getattr(node, field.name), field.metadata.get("axes")
      if declared is None:
        yield from _walk(value, prefix, f"{type(node).__name__}.{field.name}")
      else:
        yield Axes((*prefix, *declared))
  elif isinstance(node, dict):
    for key in sorted(node):
      stacked = stack_depths(key) is not None
      yield from _walk(node[key], (*prefix, "layers") if stacked else prefix, f"{owner}[{key!r}]")
  elif isinstance(node, (tuple, list)):
    for index, value in enumerate(node):
      yield from _walk(value, prefix, f"{owner}[{index}]")
  elif node is not None:
    raise TypeError(
      f"{owner} holds {type(node).__name__}, but its axes are not declared. Declare the field with "
      'memjax.core.leaf("slots", "memory") (the names of the axes after batch).'
    )


def _batch_axis(names: Axes) -> int:
  return names.index("batch")


def map_rows(fn, state, *others):
  """Maps `fn(batch_axis, leaf, *other_leaves)` over a state and others of its structure."""
  return jax.tree.map(
    lambda names, *leaves: fn(_batch_axis(names), *leaves), axes(state), state, *others
  )


def batch_size(state) -> int | None:
  """The batch size that a state was made for; None for a state without arrays.

  Raises:
    ValueError: the leaves disagree.
  """
  sizes = {
    a.shape[_batch_axis(n)]
    for a, n in zip(jax.tree.leaves(state), jax.tree.leaves(axes(state)), strict=True)
  }
  if len(sizes) > 1:
    raise ValueError(
      f"leaves of {type(state).__name__} have different batch sizes: {sorted(sizes)}"
    )
  return sizes.pop() if sizes else None


def select(flag: jax.Array, new, old):
  """Rows of `new` where `flag [B]` is true, rows of `old` elsewhere; `where`, so that a NaN in the
  other row stays there."""

  def pick(axis, a, b):
    shape = [1] * b.ndim
    shape[axis] = flag.shape[0]
    return jnp.where(flag.reshape(shape), a, b)

  return map_rows(lambda axis, b, a: pick(axis, a, b), old, new)


def take_rows(state, rows: jax.Array):
  """Rows `rows [R] int32` of a state, by name of the batch axis: beam search, continuous batching,
  state pools.

  A row out of range is filled with NaN (or the smallest integer), never clamped to another row.
  """
  return map_rows(lambda axis, a: jnp.take(a, rows, axis=axis, mode="fill"), state)


def put_rows(state, rows: jax.Array, new):
  """`state` with its rows `rows [R] int32` replaced by those of `new` (batch R); rows out of range
  are dropped."""

  def put(axis, a, b):
    moved = jnp.moveaxis(a, axis, 0).at[rows].set(jnp.moveaxis(b, axis, 0), mode="drop")
    return jnp.moveaxis(moved, 0, axis)

  return map_rows(put, state, new)


def detach(state):
  """The same state without gradient: truncated back-propagation is `detach(state)` between
  segments."""
  return jax.tree.map(jax.lax.stop_gradient, state)


def abstract_state(memory, batch: int):
  """Shapes and dtypes of `memory.init_state(batch)`, without computing it."""
  return jax.eval_shape(lambda: memory.init_state(batch))


def state_bytes(state) -> int:
  """Bytes of all arrays of a state (concrete or abstract)."""
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
