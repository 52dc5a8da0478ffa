"""Where one dimension of the inputs goes in a function, and whether its indices stay apart.

The check of AutoChunk (arXiv 2401.10652): a function can be cut along a dimension if every equation
leaves its indices alone. Every variable has one label: the axis that is the dimension, or None for
a variable that has nothing of it.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax.extend.core import Literal

ELEMENTWISE = frozenset(
  "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz copy cos cosh "
  "convert_element_type digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow "
  "is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not or "
  "population_count pow reduce_precision rem round rsqrt select_n shift_left "
  "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh "
  "xor".split()
)
REDUCES = frozenset("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod "
                    "reduce_sum reduce_xor".split())  # fmt: skip
ALONG = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())
CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Mixed(ValueError):
  """The function mixes indices of the dimension."""


def output_axes(f, in_axes, *args):
  """The axis of each output of `f(*args)` that holds the dimension; None where there is none.

  Args:
    in_axes: one axis or None an argument; all leaves of an argument have it.
    *args: arrays, or `jax.ShapeDtypeStruct`s.

  Returns:
    A list, one entry a leaf of f's outputs.

  Raises:
    Mixed: an equation lets indices reach each other (a softmax, a sum, a sort over the dimension),
      or is not known not to; it is named.
  """
  closed = jax.make_jaxpr(f)(*args)
  labels = [
    None if axis is None else axis % a.ndim
    for axis, arg in zip(in_axes, args, strict=True)
    for a in jax.tree.leaves(arg)
  ]
  return _run(closed.jaxpr, labels)


def _run(jaxpr, labels: list, evens: list | None = None) -> list:
  """Labels of the outputs. `evens`: axes along which unlabelled inputs are constant."""
  held = dict(zip(jaxpr.invars, labels, strict=True))
  even = dict(zip(jaxpr.invars, evens or [set() for _ in labels], strict=True))
  for eqn in jaxpr.eqns:
    ins = [None if isinstance(v, Literal) else held.get(v) for v in eqn.invars]
    same = [set() if isinstance(v, Literal) else even.get(v, set()) for v in eqn.invars]
    if all(axis is None for axis in ins):
      even[eqn.outvars[0]] = _spread(eqn, same)
    else:
      held.update(zip(eqn.outvars, _labels(eqn, ins, same), strict=True))
  return [None if isinstance(v, Literal) else held.get(v) for v in jaxpr.outvars]


def _spread(eqn, same: list) -> set:
  """The axes along which the output of an equation without the dimension is constant."""
  name = eqn.primitive.name
  if name == "broadcast_in_dim":
    kept, shape = eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape
    grown = {o for i, o in enumerate(kept) if shape[i] == 1 or i in same[0]}
    return (set(range(eqn.outvars[0].aval.ndim)) - set(kept)) | grown
  if name in ELEMENTWISE:
    known = [axes for v, axes in zip(eqn.invars, same, strict=True) if v.aval.ndim]
    return set.intersection(*known) if known else set()
  return set()


def _refuse(eqn, why: str) -> NoReturn:
  raise Mixed(f"{eqn.primitive.name} {why}: {str(eqn)[:200]}")


def _labels(eqn, ins: list, same: list) -> list:
  name, params = eqn.primitive.name, eqn.params
  if name in RULES:
    return RULES[name](eqn, ins, same)
  inner: Any = next((params[key] for key in CALLS if key in params), None)
  if inner is None:
    _refuse(eqn, "is not known to leave the indices of a dimension apart")
  jaxpr = getattr(inner, "jaxpr", inner)
  count = len(jaxpr.invars)
  return _run(jaxpr, ins[len(ins) - count :], same[len(same) - count :])


def _first(eqn, ins: list) -> tuple[int, Any]:
  """The axis that is the dimension, and the shape of the operand that has it."""
  axis = next(a for a in ins if a is not None)
  return axis, eqn.invars[ins.index(axis)].aval


def _elementwise(eqn, ins: list, same: list) -> list:
  axis, _ = _first(eqn, ins)
  for v, other, constant in zip(eqn.invars, ins, same, strict=True):
    if other != axis and (other is not None or (v.aval.ndim and axis not in constant)):
      _refuse(eqn, f"takes an operand that has the size of the dimension in axis {axis}, and is "
                   "not cut")  # fmt: skip
  return [axis]


def _concatenate(eqn, ins: list, same: list) -> list:
  axis, _ = _first(eqn, ins)
  if eqn.params["dimension"] == axis:
    _refuse(eqn, f"joins along the dimension (axis {axis})")
  return _elementwise(eqn, ins, same)


def _reduce(eqn, ins: list, same: list) -> list:
  axis, _ = _first(eqn, ins)
  axes = eqn.params["axes" if "axes" in eqn.params else "dimensions"]
  if axis in axes:
    _refuse(eqn, f"reduces over the dimension (axis {axis})")
  return [axis - sum(a < axis for a in axes)] * len(eqn.outvars)


def _along(eqn, ins: list, same: list) -> list:
  axis, source = _first(eqn, ins)
  last = source.ndim - 1 if eqn.primitive.name == "top_k" else None
  if axis == eqn.params.get("axis", eqn.params.get("dimension", last)):
    _refuse(eqn, f"runs along the dimension (axis {axis})")
  return [axis] * len(eqn.outvars)


def _reshape(eqn, ins: list, same: list) -> list:
  (axis, source), shape = _first(eqn, ins), eqn.outvars[0].aval.shape
  before = math.prod(source.shape[:axis])
  for j, size in enumerate(shape):
    if size == source.shape[axis] and math.prod(shape[:j]) == before:
      return [j]
  _refuse(eqn, "joins the dimension with others, or cuts it")


def _whole(eqn, ins: list, same: list) -> list:
  axis, source = _first(eqn, ins)
  whole = all(v.aval.shape[axis] == source.shape[axis] for v in eqn.outvars)
  turned = eqn.primitive.name == "rev" and axis in eqn.params["dimensions"]
  if not whole or turned or any(a is not None for a in ins[1:]):
    _refuse(eqn, f"cuts, fills or turns the dimension (axis {axis})")
  return [axis] * len(eqn.outvars)


def _dot(eqn, ins: list, same: list) -> list:
  (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
  contract, batch = (left, right), (left_batch, right_batch)
  for side, axis in enumerate(ins):
    if axis is not None and axis in contract[side]:
      _refuse(eqn, "sums over the dimension")
  places = [None if a is None or a not in batch[s] else batch[s].index(a)
            for s, a in enumerate(ins)]  # fmt: skip
  if places[0] is not None or places[1] is not None:
    if places[0] != places[1]:
      _refuse(eqn, "takes an operand that has the size of the dimension and is not cut")
    return [places[0]]
  if None not in ins:
    _refuse(eqn, "pairs every index of the dimension with every other")
  side, axis = (0, ins[0]) if ins[0] is not None else (1, ins[1])
  free = [[i for i in range(v.aval.ndim) if i not in (*contract[s], *batch[s])]
          for s, v in enumerate(eqn.invars)]  # fmt: skip
  return [len(left_batch) + (len(free[0]) if side else 0) + free[side].index(axis)]


def _gather(eqn, ins: list, same: list) -> list:
  """Rows of a table by the dimension's ids, or of each index by its own (`take_along_axis`)."""
  numbers, (operand, ids) = eqn.params["dimension_numbers"], ins
  if operand is not None:
    batching = numbers.operand_batching_dims
    where = numbers.start_indices_batching_dims
    if ids is None or operand not in batching or where[batching.index(operand)] != ids:
      _refuse(eqn, "picks from the dimension")
  if ids is None or ids == eqn.invars[1].aval.ndim - 1:
    _refuse(eqn, "picks from the dimension")
  plain = [i for i in range(eqn.outvars[0].aval.ndim) if i not in numbers.offset_dims]
  return [plain[ids]]


def _scan(eqn, ins: list, same: list) -> list:
  consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
  if any(axis == 0 for axis in ins[consts + carries :]):
    _refuse(eqn, "runs along the dimension (axis 0)")
  xs = [None if axis is None else axis - 1 for axis in ins[consts + carries :]]
  carry, evens = ins[consts : consts + carries], same[: consts + carries] + [set() for _ in xs]
  for _ in range(carries + 1):
    outs = _run(eqn.params["jaxpr"].jaxpr, [*ins[:consts], *carry, *xs], evens)
    new = [b if a is None else a for a, b in zip(carry, outs[:carries], strict=True)]
    if new == carry:
      break
    carry = new  # what a step has made of the dimension, the next one takes in
  if any(a != b for a, b in zip(carry, outs[:carries], strict=True)):
    _refuse(eqn, "moves the dimension from step to step")
  return [*carry, *(None if axis is None else axis + 1 for axis in outs[carries:])]


def _cond(eqn, ins: list, same: list) -> list:
  if ins[0] is not None:
    _refuse(eqn, "branches by the dimension")
  outs = [_run(branch.jaxpr, ins[1:], same[1:]) for branch in eqn.params["branches"]]
  if any(out != outs[0] for out in outs):
    _refuse(eqn, "has branches that treat the dimension differently")
  return outs[0]


RULES: dict[str, Callable] = {
  **dict.fromkeys(ELEMENTWISE, _elementwise),
  **dict.fromkeys(REDUCES, _reduce),
  **dict.fromkeys((*ALONG, "sort", "top_k"), _along),
  **dict.fromkeys(("slice", "dynamic_slice", "rev", "pad", "split"), _whole),
  "broadcast_in_dim": lambda eqn, ins, same: [eqn.params["broadcast_dimensions"][ins[0]]],
  "concatenate": _concatenate,
  "cond": _cond,
  "dot_general": _dot,
  "gather": _gather,
  "optimization_barrier": lambda eqn, ins, same: ins,
  "reshape": _reshape,
  "scan": _scan,
  "squeeze": _reduce,
  "transpose": lambda eqn, ins, same: [eqn.params["permutation"].index(ins[0])],
}
