"""Moments in the host's memory: the same training, and none of them on the device between steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from memjax.core import param
from memjax.training import (
  LossOutput,
  host_moments,
  init_train_state,
  make_optimizer,
  make_state,
  make_train_step,
)
from tests.pallas_kernels import aot
from tests.training.tiny import Batches, same_bits, squares, tiny


def optimizer(model, tables="dense"):
  return make_optimizer(model, learning_rate=0.1, tables=tables)


def kinds(tree):
  return {a.sharding.memory_kind for a in jax.tree.leaves(tree) if a.ndim}


def test_ten_steps_are_those_of_the_device_alone():
  results = []
  for offload in (False, True):
    state, optimiser, shardings = make_state(
      tiny, optimizer, key=jax.random.key(3), offload=offload
    )
    state = jax.tree.map(jnp.copy, state)  # `tiny` is shared
    state = state if shardings is None else jax.device_put(state, shardings)
    step = make_train_step(squares, optimiser, shardings=shardings)
    for number in range(10):
      state, _ = step(state, Batches(bad=[4]).at(number))  # a bad step leaves them as they were
    results.append(state)
  alone, host = results
  assert same_bits(host.params, alone.params) and same_bits(host.opt_state, alone.opt_state)
  assert kinds(host.opt_state) == {"pinned_host"} and kinds(host.params) == {"device"}
  assert int(host.skipped) == 1


def test_moments_of_tables_by_rows_stay():
  state = init_train_state(tiny(), optimizer(tiny(), "lazy"), key=jax.random.key(0))
  places = host_moments(state).opt_state
  assert {p.memory_kind for p in jax.tree.leaves(places["tables"])} == {"device"}
  assert "pinned_host" in {p.memory_kind for p in jax.tree.leaves(places["others"])}


class Wide(nnx.Module):
  def __init__(self, rngs):
    init = nnx.initializers.normal(0.01)
    make = lambda: param(rngs, init, (1024, 1024), axes=("embed", "mlp"))  # noqa: E731
    self.kernels = nnx.List([make() for _ in range(4)])


def wide_loss(model, memory, batch, key):
  y = batch
  for kernel in model.kernels:
    y = jnp.tanh(y @ kernel[...])
  return LossOutput(jnp.sum(y), jnp.float32(y.size))


@pytest.mark.slow
@aot.requires_libtpu
def test_on_a_tpu_the_device_holds_no_moments_between_steps():
  mesh = aot.mesh("v5e")
  make = lambda: Wide(nnx.Rngs(0))  # noqa: E731
  optimiser = optimizer(jax.eval_shape(make))
  abstract = jax.eval_shape(lambda: init_train_state(make(), optimiser, key=jax.random.key(0)))
  alone = jax.tree.map(lambda a: NamedSharding(mesh, PartitionSpec()), abstract)

  def held(shardings):
    state = jax.tree.map(
      lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), abstract, shardings
    )
    batch = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=alone.step)
    step = make_train_step(wide_loss, optimiser, shardings=shardings)
    return step.lower(state, batch).compile().memory_analysis()

  moments = 2 * 4 * 4 * 1024 * 1024
  device, host = held(alone), held(host_moments(abstract, alone))
  fall = device.argument_size_in_bytes - host.argument_size_in_bytes
  assert fall == pytest.approx(moments, rel=0.01)
  assert host.host_argument_size_in_bytes == pytest.approx(moments, rel=0.01)


class Number(nnx.Module):
  def __init__(self):
    self.w = nnx.Param(jnp.zeros((1,), jnp.bfloat16))


def test_parts_are_summed_in_float32():
  """Gradients 256, 1, 1, 1: in bfloat16 256 + 1 is 256."""
  rows = np.array([[256], [1], [1], [1]], np.float32)

  def loss(model, memory, batch, key):
    return LossOutput(jnp.sum(batch * model.w[...][None]), jnp.float32(batch.shape[0]))

  state = init_train_state(Number(), optax.sgd(1.0), key=jax.random.key(0))
  state, _ = make_train_step(loss, optax.sgd(1.0), accumulate=4)(state, rows)
  assert state.params["w"].dtype == jnp.bfloat16
  assert float(state.params["w"][0]) == -float(jnp.bfloat16(259 / 4)) != -64
