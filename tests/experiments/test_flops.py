"""Counted FLOPs against counts by hand."""

import jax
import jax.numpy as jnp

from experiments import flops


def test_products_and_loops_are_counted():
  a, b = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32)
  assert flops.count(jnp.dot, a, b) == 2 * 4 * 8 * 16

  def loop(x):
    return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

  square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  assert flops.count(loop, square) == 5 * 2 * 8**3
  assert flops.count(jax.checkpoint(loop), square) == 5 * 2 * 8**3


def test_moving_data_is_free_and_arithmetic_counts_once():
  x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
  assert flops.count(lambda x: x.T.reshape(-1), x) == 0
  assert flops.count(lambda x: x * 2 + 1, x) == 2 * 32
  assert flops.count(jnp.sum, x) == 32
