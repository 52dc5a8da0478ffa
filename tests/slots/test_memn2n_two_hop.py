"""End-to-end memory networks follow two facts in two hops, and tell the last fact by its time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import EndToEndMemoryNetwork
from memjax.tasks import two_hop
from memjax.testing import train_small

pytestmark = pytest.mark.slow
WORLD, BATCH, CHUNK = two_hop.World(), 64, 250


def accuracy(asked_hops: int, steps: int, length: int, **options) -> float:
  """Accuracy on new stories of so many statements after training on answers alone."""
  net = EndToEndMemoryNetwork(WORLD.vocab, 24, slots=length, words=2, **options, rngs=nnx.Rngs(0))
  params, rest = split(net)
  optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

  def loss(params, key):
    net = join(params, rest)
    stories = two_hop.sample(key, BATCH, WORLD, length=length, hops=asked_hops)
    logits = net.read(stories.question, net.write(stories.statements, net.init_state(BATCH)))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, stories.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == stories.answer)

  return float(train_small(params, loss, optimiser, steps=steps, chunk=CHUNK, last=50)[1])


def test_two_hops_are_needed_and_enough():
  two, one = accuracy(2, 6000, 8, hops=2), accuracy(2, 6000, 8, hops=1)
  print(f"where the object is: {two:.3f} with two hops, {one:.3f} with one")
  assert two > 0.95
  assert one < 0.8


def chance(length: int) -> float:
  """Accuracy of naming the room that was told most often of the actor."""
  stories = two_hop.sample(jax.random.key(0), 2000, WORLD, length=length, hops=1)
  right, rooms = [], WORLD.vocab - WORLD.rooms
  given = stories.statements, stories.question, stories.answer
  for story, question, answer in zip(*map(np.asarray, given), strict=True):
    told = [b for a, b in story if a == question[0] and b >= rooms]
    names, counts = np.unique(told, return_counts=True)
    most = names[counts == counts.max()]
    right.append((answer in most) / len(most))
  return float(np.mean(right))


def test_the_last_place_is_told_by_time_alone():
  timed = accuracy(1, 2000, 16, hops=1)
  timeless, floor = accuracy(1, 2000, 16, hops=1, temporal=False), chance(16)
  print(f"where the actor is: {timed:.3f} with times, {timeless:.3f} without, chance {floor:.3f}")
  assert timed > 0.95
  assert timeless < floor + 0.05
