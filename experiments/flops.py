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


def count(fn, *args, idle: float = 1.0) -> float:
  """FLOPs of `fn(*args)` on all devices (arguments may be abstract). Loops count each trip; data
  movement and sorting count nothing. A kernel of one platform counts as the form for all the
  others.

  Args:
    idle: how often a branch is taken where another one costs nothing; branches else count as the
      costliest.
  """
  return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, idle)


def _jaxpr(jaxpr, idle: float) -> float:
  return sum(_equation(equation, idle) for equation in jaxpr.eqns)


def _equation(equation, idle: float) -> float:
  name, params = equation.primitive.name, equation.params
  inner = [
    getattr(p, "jaxpr", p)
    for p in jax.tree.leaves(params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
  ]
  inner = [p for p in inner if hasattr(p, "eqns")]
  platforms = params.get("branches_platforms")
  if platforms:  # one computation in a form for each platform: its form for any
    return _jaxpr(inner[platforms.index(None)], idle)
  if name == "cond":
    costs = [_jaxpr(p, idle) for p in inner]
    return max(costs, default=0) * (idle if 0 in costs else 1)
  if inner:
    return _times(name, params) * sum(_jaxpr(p, idle) for p in inner)
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


def _times(name: str, params) -> int:
  """How often the inside of an equation runs."""
  if name == "scan":
    return params["length"]
  if name == "shard_map":  # what one device does
    mesh = params["mesh"]
    return math.prod(mesh.shape[axis] for axis in params.get("manual_axes", mesh.axis_names))
  return 1
