"""Products in a loop whose weights get their gradients after it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import as_state, late, leaf, scan
from memjax.core.layers import Linear


@as_state
class Last:
  h: jax.Array = leaf("memory")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("flagged", [True, False])
def test_values_and_gradients_are_those_of_the_layer_in_the_loop(bias, flagged):
  layer = Linear(3, 3, bias=bias, rngs=nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
  flags = np.arange(10).reshape(2, 5) % 3 == 1 if flagged else None

  def loss(layer, x, wait):
    def step(inputs, state, context):
      token, factors = inputs
      y = late.product(layer, state.h, factors) if wait else layer(state.h)
      return y, Last(jnp.tanh(y + token))

    first, zeros = Last(jnp.ones((2, 3))), late.factors(layer, 2, 5)
    valid = None if flags is None else ~flags
    y, last = scan(step, (x, zeros), first, init=first, reset=flags, valid=valid)
    y = y if valid is None else jnp.where(valid[:, :, None], y, 0)
    return jnp.sum(jnp.sin(y)) + jnp.sum(last.h)

  grad = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
  chex.assert_trees_all_close(grad(layer, x, True), grad(layer, x, False), rtol=1e-5, atol=1e-6)
