"""The small training: what it returns, when it ends, and that it descends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.testing import train_small


def loss(params, key):
  """A parabola, whose measures are numbers of the batch."""
  number = jax.random.uniform(key)
  return jnp.square(params["a"] - 3), jnp.stack([number, jnp.abs(params["a"] - 3)])


def test_it_descends_and_tells_of_its_last_steps():
  start = {"a": jnp.zeros(())}
  params, measure, steps = train_small(start, loss, optax.sgd(0.1), steps=45, chunk=20, last=5)
  assert steps == 40  # whole calls
  left = 3 * 0.8 ** np.arange(40)  # before each step; after all of them
  np.testing.assert_allclose(params["a"], 3 - 3 * 0.8**40, rtol=1e-5)
  keys = jax.random.split(jax.random.key(1), 20)[-5:]
  drawn = jnp.mean(jax.vmap(jax.random.uniform)(keys))
  # 3 - a cancels: 1e-6 of 3.
  np.testing.assert_allclose(measure, [drawn, left[-5:].mean()], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(10.0, 20), (0.02, 40), (-1.0, 60)])
def test_it_ends_when_it_is_enough(limit, expected):
  params, _, steps = train_small(
    {"a": jnp.zeros(())}, loss, optax.sgd(0.1), steps=60, chunk=20, enough=lambda m: m[1] < limit
  )
  assert steps == expected
  np.testing.assert_allclose(params["a"], 3 - 3 * 0.8**expected, rtol=1e-5)
