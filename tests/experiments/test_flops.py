"""Counted FLOPs against counts by hand."""

import jax
import jax.numpy as jnp

from experiments import flops
from pallas_kernels.embedding_bag import embedding_bag


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


def test_a_computation_with_a_kernel_for_a_platform_counts_as_its_form_for_any():
  def both(x):
    return jax.lax.platform_dependent(x, default=jnp.sin, tpu=lambda x: x @ x)

  assert flops.count(both, jax.ShapeDtypeStruct((8, 8), jnp.float32)) == 64
  ids, weights = jnp.zeros((4, 2), jnp.int32), jnp.ones((4, 2))
  bag = lambda table: embedding_bag(table, ids, weights)  # noqa: E731
  chunk = lambda table: embedding_bag(table, ids, weights, implementation="chunk")  # noqa: E731
  table = jax.ShapeDtypeStruct((8, 256), jnp.float32)
  assert flops.count(bag, table) == flops.count(chunk, table) > 0
