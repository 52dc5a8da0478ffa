"""MEMO infers over pairs that it never saw together, and learns after how many hops to answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import MEMO
from memjax.tasks import paired_associative_inference as pai

CHUNK = 100


class Training:
  """Adam on episodes drawn anew.

  Args:
    cue_alone: the question is the cue, without the two items to choose from.
    distance: that of all questions; None: all.
  """

  def __init__(
    self, world, *, rate, steps, batch=64, cue_alone=False, distance=None, dim=64, **options
  ):
    self.world, self.batch, self.cue_alone, self.distance = world, batch, cue_alone, distance
    net = MEMO(world.vocab, dim, slots=world.facts, items=3, **options, rngs=nnx.Rngs(0))
    self.params, self.rest = split(net)
    rate = optax.cosine_decay_schedule(rate, steps)
    self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    self.carry, self.done = (self.params, self.optimizer.init(self.params)), 0
    self.steps, self.test = jax.jit(self._steps), jax.jit(self._test, static_argnums=2)
    self.hops = jax.jit(self._hops)

  def _told(self, net, key, distance):
    episodes = pai.sample(key, self.batch, self.world, distance=distance)
    pairs = jnp.pad(episodes.facts, ((0, 0), (0, 0), (0, 1)))
    question = episodes.question
    question = question.at[:, 1:].set(0) if self.cue_alone else question
    return episodes, question, net.write(pairs, net.init_state(self.batch))

  def _steps(self, carry, key, hops_weight):
    def loss(params, key):
      net, keys = join(params, self.rest), jax.random.split(key)
      episodes, question, state = self._told(net, keys[0], self.distance)
      given = {"key": keys[1], "hops_weight": hops_weight}
      return net.loss(question, episodes.answer, state, **given).mean()

    def step(carry, key):
      params, moments = carry
      updates, moments = self.optimizer.update(jax.grad(loss)(params, key), moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))[0]

  def _test(self, params, key, distance):
    net = join(params, self.rest)
    episodes, question, state = self._told(net, key, distance)
    options = jnp.take_along_axis(net.read(question, state), episodes.question[:, 1:], axis=1)
    return jnp.mean(jnp.argmax(options, axis=1) == episodes.side)

  def _hops(self, params, key):
    net = join(params, self.rest)
    episodes, question, state = self._told(net, key, None)
    return jnp.mean(net.losses(question, episodes.answer, state).hops)

  def made(self):
    """After how many hops it answers, on average over all questions."""
    return float(np.mean([self.hops(self.carry[0], jax.random.key(k)) for k in range(10)]))

  def run(self, steps, hops_weight=0.001):
    for _ in range(steps // CHUNK):
      self.carry = self.steps(self.carry, jax.random.key(self.done), hops_weight)
      self.done += 1
    return self

  def score(self, distance, given=None):
    """How often the right one of both items is preferred in new episodes.

    Args:
      given: parameters to use instead of those trained.
    """
    params, keys = self.carry[0] | (given or {}), range(10**6, 10**6 + 10)
    return float(np.mean([self.test(params, jax.random.key(k), distance) for k in keys]))


@pytest.mark.slow
def test_what_is_two_pairs_away_takes_two_hops():
  """From the cue alone, so that no head can look the two items up instead."""
  world, halt = pai.World(items=6, chains=2, length=3), "policy/halt_out/bias"
  options = {"dim": 32, "heads": 2, "hops": 2, "policy": 1, "halt_bias": -99.0}
  training = Training(world, rate=1e-2, steps=400, cue_alone=True, distance=2, **options).run(400)
  two, one = training.score(2), training.score(2, {halt: jnp.full(1, 99.0)})
  print(f"A to C: {two:.3f} after both hops, {one:.3f} after the first")
  assert two > 0.95
  assert one < 0.65


@pytest.mark.slow
def test_direct_and_indirect_questions():
  """Cue and both items: A-B, B-C and A-C alike."""
  found = {}
  for hops in (3, 1):
    trained = Training(pai.World(), rate=3e-3, steps=4000, hops=hops, policy=None).run(4000)
    found[hops] = [trained.score(distance) for distance in (1, 2)]
    print(f"{hops} hops: direct {found[hops][0]:.3f}, indirect {found[hops][1]:.3f}")
  assert min(found[3]) > 0.95
  assert found[1][0] > 0.95 and found[1][1] < 0.6


@pytest.mark.slow
def test_dearer_hops_are_fewer():
  """Nothing is lost on direct questions; where hops cost little, the indirect ones are solved."""
  found = {}
  for hops_weight in (0.001, 0.1):
    trained = Training(pai.World(), rate=3e-3, steps=4000, hops=4, policy=16, halt_bias=-3.0)
    trained.run(4000, hops_weight)
    scores = [trained.score(distance) for distance in (1, 2)]
    found[hops_weight] = (*scores, trained.made())
    text = "hops at {}: direct {:.3f}, indirect {:.3f}, {:.2f} hops"
    print(text.format(hops_weight, *found[hops_weight]))
  (direct, indirect, many), (same, _, few) = found.values()
  assert min(direct, same) > 0.98 and indirect > 0.95
  assert few < many - 1
