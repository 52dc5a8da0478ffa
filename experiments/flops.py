"""Floating-point operations of a function, counted on its jaxpr: matrix products exactly, other
arithmetic once an element."""

import math

import jax

_FREE = {
  "reshape",
  "broadcast_in_dim",
  "transpose",
  "convert_element_type",
  "slice",
  "squeeze",
  "concatenate",
  "gather",
  "copy",
  "dynamic_slice",
  "dynamic_update_slice",
  "iota",
  "select_n",
  "stop_gradient",
  "pad",
  "rev",
  "split",
  "eq",
  "ne",
  "lt",
  "le",
  "gt",
  "ge",
  "and",
  "or",
  "not",
  "argsort",
  "sort",
  "top_k",
  "expand_dims",
  "bitcast_convert_type",
  "platform_index",
}


def count(fn, *args) -> float:
  """FLOPs of `fn(*args)` (arguments may be abstract). Loops count each trip; data movement and
  sorting count nothing. A kernel of one platform counts as the form for all the others."""
  return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr(jaxpr) -> float:
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> float:
  name, params = equation.primitive.name, equation.params
  inner = [
    getattr(p, "jaxpr", p)
    for p in jax.tree.leaves(params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
  ]
  inner = [p for p in inner if hasattr(p, "eqns")]
  platforms = params.get("branches_platforms")
  if platforms:  # one computation in a form for each platform: its form for any
    return _jaxpr(inner[platforms.index(None)])
  if name == "cond":
    return max((_jaxpr(p) for p in inner), default=0)
  if inner:
    trips = params["length"] if name == "scan" else 1
    return trips * sum(_jaxpr(p) for p in inner)
  if name == "dot_general":
    (contract, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return (
      2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contract)
    )
  if name in _FREE or not equation.outvars:
    return 0
  sizes = [v.aval.size for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "size")]
  return (
    float(max(sizes))
    if name.startswith(("reduce", "scatter", "cum"))
    else float(equation.outvars[0].aval.size)
  )
