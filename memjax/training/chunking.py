"""AutoChunk (arXiv 2401.10652): the largest pieces with which a function fits into a budget."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from memjax.core import checks, chunk
from memjax.training.dimension_flow import Mixed, output_axes

_found: dict = {}


@dataclasses.dataclass(frozen=True)
class Chunked:
  """A function in pieces: calling it is calling `f`.

  Attributes:
    f: the function in pieces, or as it was where it fits whole.
    in_axes, out_axes: along which it is cut.
    size: indices of a piece.
    num_bytes: temporaries of the compiled program.
  """

  f: Callable
  in_axes: tuple
  out_axes: Any
  size: int
  num_bytes: int

  def __call__(self, *args):
    return self.f(*args)


def check_rows(f, in_axes: tuple, out_axes, *args) -> None:
  """Raises ValueError unless `f` can be cut along these axes: no index reaches another.

  Args:
    f: of arrays or pytrees; nothing of it is computed.
    in_axes: one axis or None an argument.   out_axes: one axis, or one an output leaf.
    *args: arrays, or `jax.ShapeDtypeStruct`s.
  """
  try:
    found = output_axes(f, in_axes, *args)
  except Mixed as error:
    raise ValueError(f"f cannot be cut along in_axes={in_axes}: {error}") from error
  shapes = jax.tree.leaves(jax.eval_shape(f, *args))
  wanted = [out_axes] * len(shapes) if isinstance(out_axes, int) else jax.tree.leaves(out_axes)
  wanted = [axis % a.ndim for axis, a in zip(wanted, shapes, strict=True)]
  if found != wanted:
    raise ValueError(
      f"cut along in_axes={in_axes}, f has its pieces along axes {found} of its outputs, not along "
      f"out_axes={out_axes}"
    )


def autochunk(
  f, args: Sequence, budget_bytes: int, candidates: Sequence[tuple[tuple, Any]], *,
  of: Callable[[Callable], Callable] = lambda f: f,
) -> Chunked:  # fmt: skip
  """`f` in the fewest pieces with which its compiled program needs at most `budget_bytes`.

  Programs are compiled for halves, quarters, ... of the axis until one fits; answers are kept by
  function, shapes and budget.

  Args:
    f: of arrays or pytrees to arrays.
    args: arrays, or `jax.ShapeDtypeStruct`s (with shardings for devices that are not there).
    budget_bytes: for temporaries: what `memory_analysis()` calls `temp_size_in_bytes`.
    candidates: `(in_axes, out_axes)` along which f may be cut; those that mix its rows are left
      out. Of several, the one with the fewest pieces is taken, then the first.
    of: what is compiled and measured, such as `jax.grad`.

  Raises:
    ValueError: no candidate can be cut, or none fits even one index at a time; with the reasons.
  """
  checks.positive(budget_bytes=budget_bytes)
  leaves, structure = jax.tree.flatten(tuple(args))
  shapes = tuple((a.shape, str(a.dtype), getattr(a, "sharding", None)) for a in leaves)
  key = f, of, structure, shapes, budget_bytes, str(candidates)
  if key not in _found:
    _found[key] = _search(f, args, budget_bytes, candidates, of)
  return _found[key]


def _search(f, args, budget: int, candidates, of) -> Chunked:
  reasons, able = [], []
  for in_axes, out_axes in candidates:
    try:
      check_rows(f, in_axes, out_axes, *args)
    except ValueError as error:
      reasons.append(str(error))
      continue
    cut = next((a, arg) for a, arg in zip(in_axes, args, strict=True) if a is not None)
    able.append((in_axes, out_axes, jax.tree.leaves(cut[1])[0].shape[cut[0]]))
  if not able:
    raise ValueError("f cannot be cut along any candidate. " + " ".join(reasons))
  pieces, least = 1, None
  while True:
    rest = [(i, o, length) for i, o, length in able if pieces <= length]
    if not rest:
      raise ValueError(
        f"no piece of f fits into budget_bytes={budget}; the least was {least} bytes"
      )
    for in_axes, out_axes, length in rest:
      size = -(-length // pieces)
      own = f if size == length else chunk(f, in_axes=in_axes, out_axes=out_axes, size=size)
      planned: Any = jax.jit(of(own)).lower(*args).compile().memory_analysis()
      used = planned.temp_size_in_bytes
      least = used if least is None else min(least, used)
      if used <= budget:
        return Chunked(own, in_axes, out_axes, size, used)
    pieces *= 2
