"""What a stack's `remat` keeps: the same gradients from less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, join, split
from memjax.transformer import Attention, FeedForward, Stack
from tests.pallas_kernels import aot

LENGTH, DIM, BLOCKS = 512, 128, 8


def gradient(remat, dim=4, heads=1):
  attention = functools.partial(Attention, heads=heads)
  stack = functools.partial(
    Stack, dim, pattern=(attention, FeedForward), repeats=BLOCKS, dropout=0.2, remat=remat,
    exceptions={2: (FeedForward,)}, rngs=nnx.Rngs(0),
  )  # fmt: skip
  trainable, rest = split(stack())

  def loss(trainable, x):
    memory, context = join(trainable, rest), Context(key=jax.random.key(1))
    y, _ = memory(x, memory.init_state(x.shape[0]), context=context)
    return jnp.mean(jnp.sin(y.astype(jnp.float32)))

  return jax.value_and_grad(loss), trainable


@functools.cache
def kept_all():
  step, trainable = gradient(None)
  return jax.jit(step)(trainable, jnp.ones((2, 3, 4)))


@pytest.mark.parametrize(
  "remat", ["offload", *(pytest.param(r, marks=pytest.mark.slow) for r in ("full", "dots"))]
)
def test_gradients_are_the_same_under_dropout(remat):
  step, trainable = gradient(remat)
  got = jax.jit(step)(trainable, jnp.ones((2, 3, 4)))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, got, kept_all())


@aot.requires_libtpu
@pytest.mark.slow
def test_on_a_tpu_the_inputs_of_blocks_lie_on_the_host():
  x = jax.ShapeDtypeStruct((8, LENGTH, DIM), jnp.bfloat16)
  sizes = {}
  for remat in ("full", "offload"):
    step, trainable = gradient(remat, DIM, heads=2)
    sizes[remat] = aot.lower("v5e", step, trainable, x).compile().memory_analysis()
  inputs = 2 * 8 * LENGTH * DIM * BLOCKS
  assert sizes["full"].host_temp_size_in_bytes == 0
  assert sizes["offload"].host_temp_size_in_bytes >= 0.8 * inputs
