"""A training state on a mesh: where each of its arrays lies, and how it is drawn in pieces."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core import sharding as core
from memjax.core.module import variable_axes
from memjax.core.sharding import DEFAULT_RULES, Rules
from memjax.training.offload import host_moments
from memjax.training.step import Optimizer, TrainState, init_train_state


def state_shardings(
  abstract_state: TrainState, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> TrainState:
  """The shardings of a training state (concrete or abstract), as a `TrainState` of its structure.

  Parameters and the model's other arrays lie by their logical axes, and so do the optimiser's
  arrays of a parameter's shape; those with its shape but for the last axis, numbers of a table's
  rows, lie with the rows. Memory states lie by their axes. All else is on every device.

  Raises:
    ValueError: an axis does not divide.
  """
  model = abstract_state.model
  names = variable_axes(model)
  places = jax.tree.leaves(core.model_shardings(model, mesh, rules))
  where: dict[str, NamedSharding] = dict(zip(names, places, strict=True))
  everywhere = NamedSharding(mesh, PartitionSpec())

  def beside(path, a) -> NamedSharding:
    """Of an optimiser's array, by the name of the parameter in its path."""
    name = next((k for k in (getattr(p, "key", None) for p in path) if k in params), None)
    if name is None:
      return everywhere
    shape, place = params[name].shape, where[name]
    if a.shape == shape:
      return place
    if shape and a.shape[: len(shape) - 1] == shape[:-1]:
      return NamedSharding(mesh, PartitionSpec(*place.spec[: len(shape) - 1]))
    return everywhere

  params, rest = abstract_state.params, abstract_state.rest
  fields: dict[str, Any] = dict.fromkeys(("step", "key", "skipped", "streak"), everywhere)
  fields["params"] = {name: where[name] for name in params}
  return TrainState(
    rest=dataclasses.replace(rest, arrays={name: where[name] for name in rest.arrays}),
    opt_state=jax.tree_util.tree_map_with_path(beside, abstract_state.opt_state),
    memory=core.state_shardings(abstract_state.memory, mesh, rules),
    **fields,
  )


def make_state(
  make_model: Callable[[], Any], make_optimizer: Callable[[Any], Optimizer], *, key: jax.Array,
  mesh: Mesh | None = None, rules: Rules = DEFAULT_RULES,
  memory: Callable[[Any], Any] | None = None, freeze: Callable[[str], bool] | None = None,
  offload: bool = False, layout: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Optimizer, TrainState | None]:  # fmt: skip
  """The state before the first step, drawn in pieces: no array is whole on a device or a host.

  Args:
    make_model: `() -> model`, such as `lambda: LanguageModel(..., rngs=nnx.Rngs(0))`.
    make_optimizer: `model -> optimizer`, of an abstract model.
    key: a typed JAX key, of the run.
    mesh, rules: None: one device, and everything as `init_train_state(make_model(), ...)` has it.
    memory: `model -> memory state`, such as `lambda model: model.init_state(B)`, if the loss
      carries one over batches.
    freeze: names kept out of training, as given to `make_optimizer`.
    offload: the optimiser's moments wait in the host's memory (`host_moments`).
    layout: options of `core.sharding.with_layout`: `method`, `gather_time`.

  Returns:
    The state, the optimiser, and the state's shardings for `make_train_step` (None without a mesh
    or offload).

  Raises:
    ValueError: the model cannot lie on the mesh so; with the reason.
  """
  if mesh is None:
    model = make_model()
    optimizer = make_optimizer(model)
    first = None if memory is None else memory(model)
    state = init_train_state(model, optimizer, key=key, memory=first, freeze=freeze, copy=False)
    if not offload:
      return state, optimizer, None
    shardings = host_moments(state)
    return jax.device_put(state, shardings), optimizer, shardings
  draw, optimizer = _drawing(
    make_model, make_optimizer, key, mesh, rules, memory, freeze, layout
  )  # fmt: skip
  abstract = jax.eval_shape(draw)
  shardings = state_shardings(abstract, mesh, rules)
  shardings = host_moments(abstract, shardings) if offload else shardings
  return jax.jit(draw, out_shardings=shardings)(), optimizer, shardings


def abstract_state(
  make_model: Callable[[], Any], make_optimizer: Callable[[Any], Optimizer], *, key: jax.Array,
  mesh: Mesh | None = None, rules: Rules = DEFAULT_RULES,
  memory: Callable[[Any], Any] | None = None, freeze: Callable[[str], bool] | None = None,
  offload: bool = False, layout: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Optimizer, TrainState | None]:  # fmt: skip
  """As `make_state`, with a `jax.ShapeDtypeStruct` (on a mesh, with its sharding) for each array:
  nothing is drawn. A template to restore into, and what a plan compiles for."""
  draw, optimizer = _drawing(
    make_model, make_optimizer, key, mesh, rules, memory, freeze, layout
  )  # fmt: skip
  state = jax.eval_shape(draw)
  if mesh is None and not offload:
    return state, optimizer, None
  shardings = None if mesh is None else state_shardings(state, mesh, rules)
  shardings = host_moments(state, shardings) if offload else shardings
  placed = jax.tree.map(
    lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state, shardings
  )
  return placed, optimizer, shardings


def _drawing(make_model, make_optimizer, key, mesh, rules, memory, freeze, layout):
  """`() -> TrainState`, to be traced; and the optimiser."""
  abstract, layout = jax.eval_shape(make_model), layout or {}
  if mesh is not None:
    core.check_layout(abstract, mesh, rules, **layout)
  optimizer = make_optimizer(abstract)

  def draw() -> TrainState:
    model = make_model()
    if mesh is not None:
      model = core.with_layout(model, mesh, rules, **layout)
    first = None if memory is None else memory(model)
    return init_train_state(model, optimizer, key=key, memory=first, freeze=freeze, copy=False)

  return draw, optimizer
