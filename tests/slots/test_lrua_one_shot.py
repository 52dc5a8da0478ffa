"""One-shot classes: known at the second sample by what the state holds, and not without it.

An LSTM of as many parameters learns episodes this small as well: here is no comparison with one.
"""

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.slots import LRUAMemory
from memjax.tasks import one_shot
from tests.slots.beside import train

pytestmark = pytest.mark.slow


class Forgetful(nnx.Module):
  """The same memory, begun anew at every sample."""

  def __init__(self, memory):
    self.memory = memory

  def init_state(self, batch):
    return self.memory.init_state(batch)

  def __call__(self, x, state):
    return self.memory(x, state, reset=jnp.ones(x.shape[:2], bool))


def classes(run, key):
  episodes = one_shot.sample(key, 16, times=5)
  logits = run(episodes.inputs)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, episodes.labels)
  return nats.sum(-1).mean(), one_shot.accuracy(logits, episodes, 5)


def second(model, steps: int) -> float:
  """Accuracy at the second sample of a class, of five, after so many steps."""
  accuracy = train(
    model, classes, steps=steps, learning_rate=1e-2, batch=16, enough=lambda a: a[1] > 0.6
  )
  return float(accuracy[1])


def test_classes_are_known_at_the_second_sample():
  make = lambda: LRUAMemory(  # noqa: E731
    25, out=5, slots=8, width=20, heads=2, hidden=64, rngs=nnx.Rngs(0)
  )
  assert second(make(), 4000) > 0.6  # chance is 0.2; two runs of 4000 steps ended at 0.71 and 0.81
  assert second(Forgetful(make()), 1000) < 0.4
