"""The law about several devices."""

import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core import Axes, axes
from memjax.core import sharding as core
from memjax.core.module import join, split, variable_axes, variables
from memjax.testing.case import Case, NotApplicable
from memjax.testing.compare import Finding, same_gradients, same_state, same_y, states
from memjax.testing.tokens import is_float


def sharding(case: Case) -> list[Finding]:
  """Sharded by the default rules a call gives what one device gives; its state stays in place."""
  mesh = _mesh()
  batch = max(2, mesh.shape["data"] * mesh.shape["fsdp"])
  big = Case(
    case.make, dim=case.dim, batch=batch, length=case.length, extras=case.extras,
    inputs=case.inputs, seed=case.seed,
  )  # fmt: skip
  unknown = _unknown(big)
  if unknown:
    return unknown
  rules = _fitting(big, mesh)
  args = big.arguments(big.tokens[: big.half], state_weights=big.state_weights)
  (_, (y, state)), (params, *_) = jax.device_get(big.differentiate(*args))
  with jax.set_mesh(mesh):
    out = big.differentiate(*_place(big, args, mesh, rules))
  found = _placed(out[0][1][1], mesh, rules)
  (_, (y_cut, state_cut)), (params_cut, *_) = jax.device_get(out)
  note = f"{mesh.size} devices against one"
  values = same_y(case, "values", y_cut, y, note)
  values += same_state(case, "values", state_cut, state, note)
  values = values or same_gradients(case, "gradients", params_cut, params, note)
  return values + found


def _mesh() -> Mesh:
  count = jax.device_count()
  if count < 2:
    raise NotApplicable(
      "there is one device; jax.config.update('jax_num_cpu_devices', 8) makes eight of a CPU"
    )
  model = 2 if count % 8 == 0 else 1
  fsdp = 2 if count % 2 == 0 else 1
  data = 2 if count % (2 * model * fsdp) == 0 else 1
  used = np.asarray(jax.devices()[: data * fsdp * model])
  return Mesh(used.reshape(data, fsdp, model), ("data", "fsdp", "model"))


def _named(big: Case) -> list[tuple[str, Axes, tuple[int, ...]]]:
  """(what, logical axes, shape) of every parameter and state leaf."""
  arrays = variables(big.model)
  found = [(name, own, arrays[name].shape) for name, own in variable_axes(big.model).items()]
  leaves = zip(states(big.init).items(), jax.tree.leaves(axes(big.init)), strict=True)
  return found + [(name, own, np.shape(a)) for (name, a), own in leaves]


def _unknown(big: Case) -> list[Finding]:
  for what, own, shape in _named(big):
    if len(own) != len(shape):
      text = f"{what} has shape {list(shape)} and the logical axes {list(own)}; use core.param"
      return [Finding("axes", text)]
    for name in own:
      if name not in core.DEFAULT_RULES:
        known = ", ".join(core.DEFAULT_RULES)
        return [Finding("axes", f"{what} has a logical axis {name!r}; the rules know {known}")]
  return []


def _fitting(big: Case, mesh: Mesh) -> core.Rules:
  """The default rules without the names whose sizes do not divide: tiny sizes are often odd."""
  rules = dict(core.DEFAULT_RULES)
  for _, own, shape in _named(big):
    for name, size in zip(own, shape, strict=True):
      wanted = rules[name] or ()
      wanted = (wanted,) if isinstance(wanted, str) else wanted
      if size % math.prod(mesh.shape[axis] for axis in wanted if axis in mesh.shape):
        rules[name] = None
  try:
    core.check_layout(big.model, mesh, rules)
  except ValueError:  # heads that do not divide, though the features of all of them do
    rules["heads"] = None
  return rules


def _place(big: Case, args: tuple, mesh: Mesh, rules: core.Rules) -> tuple:
  """The arguments of `differentiate` on the mesh."""
  params, x_float, _, rest, state, fresh, x, reset, valid, context, weights, state_weights = args
  everywhere, rows = NamedSharding(mesh, PartitionSpec()), core.batch_sharding(mesh, rules)
  named = {name: core.spec(own, mesh, rules) for name, own in variable_axes(big.model).items()}

  def parameters(arrays):
    shardings = {name: NamedSharding(mesh, named[name]) for name in arrays}
    return jax.device_put(arrays, shardings)

  state = jax.device_put(state, core.state_shardings(state, mesh, rules))
  floats = [a for a in jax.tree.leaves(state) if is_float(a)]
  if context is not None:
    shared, tokens = jax.device_put((context.shared, context.tokens), (everywhere, rows))
    context = type(context)(context.key, shared, tokens)
  told = split(core.with_layout(join(params, rest), mesh, rules))[1]
  rest = type(rest)(parameters(rest.arrays), rest.names, told.structure)
  x_float, x, reset, valid, weights = jax.device_put((x_float, x, reset, valid, weights), rows)
  state_weights = jax.device_put(state_weights, everywhere)
  return (
    parameters(params), x_float, floats, rest, state, fresh, x, reset, valid, context, weights,
    state_weights,
  )  # fmt: skip


def _placed(state, mesh: Mesh, rules: core.Rules) -> list[Finding]:
  wanted = jax.tree.leaves(core.state_shardings(state, mesh, rules))
  for (name, a), want in zip(states(state).items(), wanted, strict=True):
    if not a.sharding.is_equivalent_to(want, a.ndim):
      got = getattr(a.sharding, "spec", a.sharding)
      return [Finding("state", f"{name} is returned sharded as {got}, it was given as {want.spec}")]
  return []
