"""Logical axes become shardings of parameters, states and batches; the model is made with and
without a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from memjax.core import as_state, leaf
from memjax.core.sharding import batch_sharding, make_mesh, model_shardings, spec, state_shardings
from memjax.transformer import FeedForward, Stack


def test_mesh_fills_and_refuses():
  assert dict(make_mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}
  with pytest.raises(ValueError, match="does not fit 8 devices"):
    make_mesh({"data": 3})
  with pytest.raises(ValueError, match="only one mesh axis"):
    make_mesh({"data": -1, "model": -1})


def test_spec_uses_each_mesh_axis_once():
  mesh = make_mesh({"data": 4, "model": 2})
  assert spec(("heads", "mlp"), mesh) == P("model", None)
  assert spec(("batch", "slots"), mesh) == P("data", None)
  with pytest.raises(KeyError, match="'hats'"):
    spec(("hats",), mesh)


@as_state
class Slots:
  memory: jax.Array = leaf("slots", "memory")


def test_states_shard_over_their_rows():
  mesh = make_mesh({"data": 8})
  state = Slots(jnp.zeros((8, 3, 2)))
  assert state_shardings(state, mesh).memory.spec == P("data", None, None)
  with pytest.raises(ValueError, match="6 is not divisible by 8"):
    state_shardings(Slots(jnp.zeros((6, 3, 2))), mesh)


def test_a_sharded_stack_computes_the_same():
  stack = Stack(
    16, pattern=[functools.partial(FeedForward, hidden=32)], repeats=2, rngs=nnx.Rngs(0)
  )
  x = jax.random.normal(jax.random.key(0), (4, 3, 16))
  expected = stack(x, stack.init_state(4))[0]
  mesh = make_mesh({"data": 2, "fsdp": 2, "model": 2})
  sharded = jax.device_put(stack, model_shardings(stack, mesh))
  kernel = sharded.layers["0+1x2"].memory.up.kernel[...]
  assert kernel.sharding.spec == P(None, "fsdp", "model")
  y = jax.jit(lambda m, x: m(x, m.init_state(4))[0])(
    sharded, jax.device_put(x, batch_sharding(mesh))
  )
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
