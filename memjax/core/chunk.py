"""Functions of many rows, some of them at a time."""

from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import channel, checks


def chunk(f, *, in_axes: Any = 0, out_axes: Any = 0, size: int, remat: bool = True):
  """`f` in pieces along one axis, one after the other: what lies between in and out is small.

  Values and gradients are those of `f` if it treats each index of the axis by itself, which
  `training.chunking` can check. What `f` emits leaves stacked by piece.

  Args:
    f: of arrays, or pytrees of them, to arrays that all have the axis.
    in_axes, out_axes: as those of `jax.vmap`; None: an argument that every piece gets whole.
    size: the most indices of a piece. Pieces are of equal size, filled up with copies of the last
      index, whose outputs are dropped.
    remat: back-propagation runs the pieces again, one at a time; False: it keeps what it needs of
      all.

  Returns:
    A function of the same arguments.

  Raises (the function returned):
    ValueError: no argument has the axis, or lengths along it differ.
  """
  checks.positive(size=size)

  def chunked(*args):
    axes = _spread(in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args), args)
    leaves, structure = jax.tree.flatten(args)
    lengths = {a.shape[axis] for a, axis in zip(leaves, axes, strict=True) if axis is not None}
    if len(lengths) != 1:
      raise ValueError(
        f"arguments have lengths {sorted(lengths)} along in_axes={in_axes}; they must have one"
      )
    (length,) = lengths
    count = -(-length // size)
    if count == 1:
      return f(*args)

    def piece(_, cut):
      cut = iter(cut)
      own = [a if axis is None else next(cut) for a, axis in zip(leaves, axes, strict=True)]
      return (), f(*jax.tree.unflatten(structure, own))

    cuts = [_cut(a, axis, count) for a, axis in zip(leaves, axes, strict=True) if axis is not None]
    step = piece
    if remat:
      step = lambda carry, cut: channel.checkpoint(piece, carry, cut, prevent_cse=False)  # noqa: E731
    _, out = channel.scan(step, (), cuts)
    outs, structure_out = jax.tree.flatten(out)
    joined = [_join(a, axis, length) for a, axis in zip(outs, _spread(out_axes, out), strict=True)]
    return jax.tree.unflatten(structure_out, joined)

  return chunked


def _spread(prefix, tree) -> list:
  """One axis a leaf."""
  none = lambda a: a is None  # noqa: E731
  parts = jax.tree.map(lambda axis, part: [axis] * len(jax.tree.leaves(part)), prefix, tree,
                       is_leaf=none)  # fmt: skip
  return [axis for part in jax.tree.leaves(parts, is_leaf=lambda a: isinstance(a, list))
          for axis in part]  # fmt: skip


def _cut(a: jax.Array, axis: int, count: int) -> jax.Array:
  """Pieces on a new axis 0: index i goes to piece i modulo their number, so that an axis that is
  cut over devices stays where it is."""
  axis %= a.ndim
  size = -(-a.shape[axis] // count)
  pad = [(0, 0)] * a.ndim
  pad[axis] = (0, size * count - a.shape[axis])
  a = jnp.pad(a, pad, mode="edge") if pad[axis][1] else a
  return jnp.moveaxis(a.reshape(*a.shape[:axis], size, count, *a.shape[axis + 1 :]), axis + 1, 0)


def _join(a: jax.Array, axis: int, length: int) -> jax.Array:
  axis %= a.ndim - 1
  a = jnp.moveaxis(a, 0, axis + 1)
  a = a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
  return jax.lax.slice_in_dim(a, 0, length, axis=axis)
