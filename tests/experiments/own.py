"""What a user would bring to `experiments.compare`: a memory and a task."""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.tasks.task import IGNORE, Batch, Task
from memjax.transformer import Attention


def pair(dim, *, rngs):
  """Attention to this token and the one before."""
  return Attention(dim, heads=1, window=2, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class First(Task):
  """At the last of `length` ids the first one is due."""

  length: int = 6
  vocab: int = 3
  number = 9999
  chance = floor = 1 / 3
  state_bits = 1.6

  def example(self, key):
    inputs = jax.random.randint(key, (self.length,), 0, 3)
    targets = jnp.full(self.length, IGNORE).at[-1].set(inputs[0])
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), {})

  def oracle(self, inputs, length):
    return jnp.full(self.length, IGNORE).at[-1].set(inputs[0])


FIRST = First()
