"""PMIEncoder: layers that share weights hand the memories on; dropout; what it refuses."""

import functools
from typing import Any

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless
from memjax.slots import PMI, PMIEncoder
from memjax.testing.case import jit
from memjax.transformer import FeedForward

SIZES: dict[str, Any] = {
  "segment": 3, "slots": 2, "heads": 2, "key_size": 2, "long_term": 2, "top_k": 2,
}  # fmt: skip
mixer = functools.partial(PMI, **SIZES, causal=False)
feed_forward = functools.partial(FeedForward, hidden=4)


def make(**options):
  given: dict[str, Any] = {"mixer": mixer, "feed_forward": feed_forward, "layers": 3} | options
  return PMIEncoder(4, **given, rngs=nnx.Rngs(0))


@jit
def run(memory, x, state, context=None):
  return memory(x, state, context=context)


def draw(length=6):
  return np.random.default_rng(1).normal(size=(2, length, 4)).astype(np.float32)


def test_layers_share_weights_and_hand_the_memories_on():
  memory, outputs = make(), []
  y, last = run(memory, draw(), memory.init_state(2))

  @jit
  def layer(memory, x, state):
    found, state = memory.mixer(memory.norm(x), state)
    x = x + found
    return x + memory.feed_forward(memory.feed_forward_norm(x), Stateless())[0], state

  state = memory.init_state(2)
  for x in np.split(draw(), 2, axis=1):
    for _ in range(3):
      x, state = layer(memory, x, state)
    outputs.append(x)
  np.testing.assert_allclose(y, np.concatenate(outputs, axis=1), rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(last, state, rtol=1e-5, atol=1e-5)


def test_dropout_follows_the_key():
  memory = make(dropout=0.5)
  first, keys = memory.init_state(2), jax.random.split(jax.random.key(0))
  ys = [run(memory, draw(), first, Context(key=key))[0] for key in (keys[0], keys[0], keys[1])]
  np.testing.assert_array_equal(ys[0], ys[1])
  assert (ys[0] != ys[2]).any()
  np.testing.assert_array_equal(run(memory, draw(), first)[0], run(make(), draw(), first)[0])


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match=r"mixer made no PMI\(causal=False\)"):
    make(mixer=functools.partial(PMI, **SIZES))
  with pytest.raises(ValueError, match="feed_forward made PMI, which has a state"):
    make(feed_forward=mixer)
  with pytest.raises(ValueError, match="layers=0"):
    make(layers=0)
  memory = make()
  with pytest.raises(ValueError, match="T=4 tokens; PMIEncoder takes multiples of segment=3"):
    memory(draw(4), memory.init_state(2))
