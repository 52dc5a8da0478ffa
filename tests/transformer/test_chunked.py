"""A memory in chunks of tokens is the memory, and needs a chunk's activations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Memory, Stateless, join, split
from memjax.slots import NeuralTuringMachine
from memjax.transformer import Attention, Chunked, FeedForward, Stack

B, D = 2, 4

MEMORIES = {
  "feed-forward": functools.partial(FeedForward, gated=True),
  "attention": functools.partial(Attention, heads=2, window=3, capacity=1, positions="at"),
  "turing-machine": functools.partial(NeuralTuringMachine, slots=5, width=3, hidden=4),
}
slow = pytest.param("turing-machine", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["feed-forward", "attention", slow])
def test_outputs_states_and_gradients_are_those_of_one_call(name):
  """11 tokens are two chunks and a rest."""
  x = jax.random.normal(jax.random.key(1), (B, 11, D))
  flags = {
    "reset": jnp.zeros((B, 11), bool).at[0, 5].set(True),
    "valid": jnp.ones((B, 11), bool).at[1, 3:5].set(False),
    "context": Context(tokens={"at": jnp.tile(2 * jnp.arange(11), (B, 1))}),
  }

  def run(make):
    trainable, rest = split(make(D, rngs=nnx.Rngs(0)))

    def loss(trainable, x):
      memory = join(trainable, rest)
      y, state = memory(x, memory.init_state(B), **flags)
      y = jnp.where(flags["valid"][..., None], y, 0)
      return jnp.mean(jnp.sin(y)), (y, state)

    out = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(trainable, x)
    return jax.tree.leaves(out)

  make = MEMORIES[name]
  for got, want in zip(
    run(functools.partial(Chunked, memory=make, size=4)), run(make), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Noise(Memory):
  """Adds noise that the context's key makes."""

  def __init__(self, dim, *, rngs):
    pass

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return x + jax.random.normal(context.key, x.shape), state


def test_noise_is_another_in_every_chunk():
  memory = Chunked(D, memory=Noise, size=4, rngs=nnx.Rngs(0))
  y, _ = memory(jnp.zeros((B, 12, D)), Stateless(), context=Context(key=jax.random.key(0)))
  assert len(np.unique(y)) == y.size


def test_activations_of_a_feed_forward_fall_by_four_fifths():
  """Forward and backward over 8192 tokens: the published mark is 80 %."""
  wide = functools.partial(FeedForward, hidden=16 * D)

  def size(make):
    trainable, rest = split(make(D, rngs=nnx.Rngs(0)))

    def loss(trainable, x):
      y, _ = join(trainable, rest)(x, Stateless())
      return jnp.sum(jnp.sin(y))

    x = jax.ShapeDtypeStruct((1, 8192, D), jnp.float32)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(trainable, x)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  whole, chunked = size(wide), size(functools.partial(Chunked, memory=wide, size=512))
  assert whole > 4 * 8192 * 16 * D  # it holds an activation [1, T, hidden]
  assert chunked < 0.2 * whole


def test_what_cannot_be_cut_is_refused():
  class Quads(Noise):
    granularity = 4

  with pytest.raises(ValueError, match="size=6 is not a multiple of the granularity 4 of Quads"):
    Chunked(D, memory=Quads, size=6, rngs=nnx.Rngs(0))
  memory = Chunked(
    D, memory=functools.partial(Stack, pattern=[functools.partial(Attention, heads=1)]),
    size=2, rngs=nnx.Rngs(0),
  )  # fmt: skip
  state = memory.init_state(B)
  assert memory(jnp.ones((B, 2, D)), state)[0].shape == (B, 2, D)
  with pytest.raises(ValueError, match="Attention has capacity=0 .* size=2"):
    memory(jnp.ones((B, 4, D)), state)

  class Set(Noise):
    causal = False

  with pytest.raises(ValueError, match="Set, which is not causal"):
    Chunked(D, memory=Set, size=2, rngs=nnx.Rngs(0))
