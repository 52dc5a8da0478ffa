"""The training step of a recipe, abstract: what its job would compile on other devices."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments import flops, meshes
from memjax.core import replace, submodules
from memjax.core.sharding import batch_sharding, check_layout
from memjax.training import TrainState, table_names


@dataclasses.dataclass(frozen=True)
class Step:
  """A step to compile.

  Attributes:
    run: the jitted `(state, batch)`.   state, batch: abstract, with shardings.
    mesh: that they lie on.   tokens: of a step.
  """

  run: Any
  state: TrainState
  batch: dict[str, jax.ShapeDtypeStruct]
  mesh: Mesh
  tokens: int


def build(config, vocab: int, devices: Sequence[Any]) -> Step:
  """The step of a recipe on a mesh of `devices`, as `config.mesh` has it.

  Raises:
    ValueError: the recipe's job has no plan; something does not fit the mesh.
  """
  job = importlib.import_module(config.job)
  if not hasattr(job, "planned"):
    raise ValueError(f"the job {config.job} cannot be planned: it has no function `planned`")
  run, state = job.planned(config, vocab, devices)
  mesh = meshes.mesh_of(config, devices)
  shape = (config.batch_size, config.sequence_length)
  rules = meshes.rules_of(config)
  check_layout(
    state.model, mesh, rules, batch=shape[0], length=shape[1], **meshes.layout_of(config)
  )
  place = batch_sharding(mesh, rules)
  kinds = {"inputs": jnp.int32, "targets": jnp.int32, "reset": jnp.bool_, "valid": jnp.bool_}
  batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=place) for name, kind in kinds.items()}
  return Step(run, state, batch, mesh, shape[0] * shape[1])


def hardware_flops(step: Step) -> float:
  """FLOPs of all devices in a step, what is computed twice counted twice."""
  with jax.set_mesh(step.mesh):
    return flops.count(step.run, step.state, step.batch, idle=0.5)


def model_flops(step: Step) -> float:
  """FLOPs that the model needs in a step: three times those of a forward pass, nothing twice."""
  shape = step.batch["inputs"].shape
  model, ids = _without_layout(step.state.model), jax.ShapeDtypeStruct((1, shape[1]), jnp.int32)

  def forward(model, ids):
    return model(ids, model.init_state(1))[0]

  return 3 * shape[0] * flops.count(forward, model, ids, idle=0.5)


def _without_layout(model):
  names = (name for module in submodules(model) for name in vars(module))
  known = {name for name in names if name.endswith("_sharding")}
  return replace(model, **{name: None for name in known}) if known else model


def sizes(state: TrainState) -> tuple[int, int]:
  """Numbers of parameters outside of tables, and in tables."""
  tables = table_names(state.model)
  held = sum(a.size for name, a in state.params.items() if name in tables)
  return sum(a.size for a in state.params.values()) - held, held
