"""The law about several devices."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core import axes, sharding as core
from memjax.core.module import variable_axes, variables
from memjax.testing.case import Case, NotApplicable
from memjax.testing.compare import Finding, differences, gradients, outputs, state_axes, states


def sharding(case: Case) -> list[Finding]:
  """Sharded over devices by the default rules, a call gives what it gives on one, and its state stays where it was."""
  mesh = _mesh()
  rows = mesh.shape["data"] * mesh.shape["fsdp"]
  big = Case(
    case.make,
    dim=case.dim,
    batch=max(rows, 2),
    length=case.length,
    extras=case.extras,
    inputs=case.inputs,
    seed=case.seed,
  )
  unknown = _unknown(big)
  if unknown:
    return unknown
  rules = _fitting(big, mesh)
  args = big.arguments(big.tokens[: big.half], state_weights=big.state_weights)
  want = jax.device_get(big.differentiate(*args))
  with jax.set_mesh(mesh):
    out = big.differentiate(*_place(big, args, mesh, rules))
  found = _placed(out[0][1][1], mesh, rules)
  return _compared(case, jax.device_get(out), want) + found


def _mesh() -> Mesh:
  count = jax.device_count()
  if count < 2:
    raise NotApplicable(
      "there is one device; jax.config.update('jax_num_cpu_devices', 8) makes eight on a CPU"
    )
  model = 2 if count % 8 == 0 else 1
  fsdp = 2 if count % 2 == 0 else 1
  data = 2 if count % (2 * model * fsdp) == 0 else 1
  used = np.asarray(jax.devices()[: data * fsdp * model])
  return Mesh(used.reshape(data, fsdp, model), ("data", "fsdp", "model"))


def _named(big: Case) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
  """(what, logical axes, shape) of every parameter and state leaf."""
  arrays = variables(big.model)
  found = [(name, names, arrays[name].shape) for name, names in variable_axes(big.model).items()]
  leaves = zip(states(big.init).items(), jax.tree.leaves(axes(big.init)), strict=True)
  return found + [(name, names, np.shape(a)) for (name, a), names in leaves]


def _unknown(big: Case) -> list[Finding]:
  for what, names, shape in _named(big):
    if len(names) != len(shape):
      return [
        Finding(
          "axes",
          f"{what} of shape {list(shape)} has the logical axes {list(names)}; make it with core.param(axes=...)",
        )
      ]
    for name in names:
      if name not in core.DEFAULT_RULES:
        return [
          Finding(
            "axes", f"{what} has a logical axis {name!r}, unknown to core.sharding.DEFAULT_RULES"
          )
        ]
  return []


def _fitting(big: Case, mesh: Mesh) -> core.Rules:
  """The default rules without the names whose sizes do not divide: tiny sizes are often odd."""
  rules = dict(core.DEFAULT_RULES)
  for _, names, shape in _named(big):
    for name, size in zip(names, shape, strict=True):
      wanted = rules[name] or ()
      wanted = (wanted,) if isinstance(wanted, str) else wanted
      if size % math.prod(mesh.shape[axis] for axis in wanted if axis in mesh.shape):
        rules[name] = None
  return rules


def _place(big: Case, args: tuple, mesh: Mesh, rules: core.Rules) -> tuple:
  params, x_float, _, rest, state, fresh, x, reset, valid, context, weights, state_weights = args
  everywhere, rows = NamedSharding(mesh, PartitionSpec()), core.batch_sharding(mesh, rules)
  named = {name: core.spec(names, mesh, rules) for name, names in variable_axes(big.model).items()}
  at = lambda arrays: {
    name: jax.device_put(a, NamedSharding(mesh, named[name])) for name, a in arrays.items()
  }  # noqa: E731
  by_row = lambda tree: jax.tree.map(lambda a: jax.device_put(a, rows), tree)  # noqa: E731
  state = jax.device_put(state, core.state_shardings(state, mesh, rules))
  floats = [a for a in jax.tree.leaves(state) if np.issubdtype(a.dtype, np.floating)]
  if context is not None:
    context = type(context)(
      context.key, jax.device_put(context.shared, everywhere), by_row(context.tokens)
    )
  rest = type(rest)(at(rest.arrays), rest.names, rest.structure)
  return (
    at(params), by_row(x_float), floats, rest, state, fresh, by_row(x), by_row(reset), by_row(valid), context,
    by_row(weights), jax.device_put(state_weights, everywhere),
  )  # fmt: skip


def _placed(state, mesh: Mesh, rules: core.Rules) -> list[Finding]:
  wanted = jax.tree.leaves(core.state_shardings(state, mesh, rules))
  for (name, a), want in zip(states(state).items(), wanted, strict=True):
    if not a.sharding.is_equivalent_to(want, a.ndim):
      got = getattr(a.sharding, "spec", a.sharding)
      return [Finding("state", f"{name} comes back sharded as {got}, it was given as {want.spec}")]
  return []


def _compared(case: Case, got, want) -> list[Finding]:
  (_, (y, state)), (params, _, _) = got
  (_, (y_want, state_want)), (params_want, _, _) = want
  note = "8 devices against one" if jax.device_count() >= 8 else "several devices against one"
  found = differences("values", outputs(y), outputs(y_want), case.tolerance, note=note)
  found += differences(
    "values",
    states(state),
    states(state_want),
    case.tolerance,
    names=state_axes(state_want),
    note=note,
  )
  return found or differences(
    "gradients", gradients(params), gradients(params_want), 10 * case.tolerance, note=note
  )
