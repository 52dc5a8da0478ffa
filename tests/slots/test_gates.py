"""Gated slot updates: what the gates do at their ends, first slots, pooled gates."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.slots import gates


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_first_slots_are_an_identity_padded_or_cut():
  np.testing.assert_array_equal(gates.identity(2, 3, 2), [[[1, 0, 0], [0, 1, 0]]] * 2)
  np.testing.assert_array_equal(gates.identity(3, 2, 1)[0], [[1, 0], [0, 1], [0, 0]])
  assert gates.identity(2, 3, 1).dtype == jnp.float32


def test_the_update_is_its_equation():
  memory, candidate, write = (draw(i, 2, 3, 4) for i in range(3))
  keep = draw(3, 2, 3, 1)
  i, f = 1 / (1 + np.exp(-write - 0.5)), 1 / (1 + np.exp(-keep - 2))
  got = gates.gated(memory, candidate, write, keep, input_bias=0.5, forget_bias=2.0)
  np.testing.assert_allclose(got, i * np.tanh(candidate) + f * memory, rtol=1e-5, atol=1e-6)


def test_gates_keep_or_replace_exactly():
  memory, candidate = 5 * draw(0, 2, 3, 4), draw(1, 2, 3, 4)
  ends = {"keep": (-jnp.inf, jnp.inf, memory), "replace": (jnp.inf, -jnp.inf, jnp.tanh(candidate))}
  for write, keep, expected in ends.values():
    np.testing.assert_array_equal(gates.gated(memory, candidate, write, keep), expected)


def test_biases_default_to_the_papers():
  memory = jnp.ones((1, 1, 1))
  got = gates.gated(memory, 0 * memory, 0.0, 0.0)
  np.testing.assert_allclose(got, 1 / (1 + np.exp(-1)), rtol=1e-6)


def test_what_is_kept_stays_bounded():
  memory = jnp.zeros((1, 2, 3))
  for step in range(100):
    memory = gates.gated(memory, 100 * draw(step, 1, 2, 3), 9.0, np.log(9.0), forget_bias=0.0)
    assert jnp.abs(memory).max() <= min(step + 1, 10)  # f = 0.9
  assert jnp.abs(memory).max() > 2


def test_pooled_gates_see_all_valid_tokens():
  pooled = gates.PooledGates(3, 5, init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
  x = draw(0, 2, 4, 3)
  kernel, scale = np.asarray(pooled.linear.kernel[...]), np.asarray(pooled.scale[...])
  relu = np.maximum(scale * np.asarray(x), 0)
  np.testing.assert_allclose(pooled(x), relu.mean(1) @ kernel, rtol=1e-5, atol=1e-6)
  valid = jnp.asarray([[True, False, True, False], [False] * 4])
  expected = np.stack([relu[0, ::2].mean(0) @ kernel, np.zeros(5)])
  got = pooled(jnp.where(valid[..., None], x, jnp.nan), valid)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
