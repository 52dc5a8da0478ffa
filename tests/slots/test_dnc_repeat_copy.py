"""Repeat copy: the computer learns it, an LSTM of as many parameters does not."""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.slots import DifferentiableNeuralComputer
from memjax.tasks import copying, repeat_copy
from tests.slots.beside import PlainLSTM, parameters, train

pytestmark = pytest.mark.slow


def repeats(run, key):
  copies = repeat_copy.sample(key, 16, longest=8)
  logits = run(copies.inputs)
  each = optax.sigmoid_binary_cross_entropy(logits, copies.targets).sum(-1)
  return jnp.sum(each * copies.mask) / 16, copying.wrong_bits(logits, copies).mean()


def test_patterns_are_repeated_and_an_lstm_fails():
  dnc = DifferentiableNeuralComputer(
    6, out=5, slots=8, width=8, read_heads=1, hidden=32, rngs=nnx.Rngs(0)
  )
  lstm = PlainLSTM(6, 5, 40, nnx.Rngs(0))
  assert parameters(lstm) >= parameters(dnc)
  # Wrong bits of a sequence of 1 to 8 vectors of 4 bits, once or twice; 15 by chance.
  train_ = lambda model: train(  # noqa: E731
    model, repeats, steps=1500, learning_rate=1e-2, batch=16, enough=lambda wrong: wrong < 0.2
  )
  assert train_(dnc) < 0.2
  assert train_(lstm) > 2
