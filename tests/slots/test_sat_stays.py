"""A spatially-aware transformer remembers places before a long stay; an allocator finds out which
strategy of forgetting a task needs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import AdaptiveMemoryAllocator, SpatiallyAwareTransformer
from memjax.tasks import uneven_stay

pytestmark = pytest.mark.slow
DIM, BATCH, CHUNK, THINGS = 16, 64, 100, 4
STAYS = (2, 1, 3, 12)  # the last stay alone fills a memory of 8


def train(params, loss, *, steps, rate=1e-2, seed=0):
  """Parameters after training on `loss(params, key, step) -> (nats, hits)`."""
  optimiser = optax.chain(
    optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(rate, steps))
  )

  @jax.jit
  def chunk(params, moments, first):
    def step(carry, index):
      params, moments = carry
      key = jax.random.fold_in(jax.random.key(seed), index)
      grads, _ = jax.grad(loss, has_aux=True)(params, key, index)
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, moments), first + jnp.arange(CHUNK))[0]

  moments = optimiser.init(params)
  for first in range(0, steps, CHUNK):
    params, moments = chunk(params, moments, first)
  return params


def make(**options):
  small = {"capacity": 8, "layers": 1, "hidden": DIM}
  return SpatiallyAwareTransformer(DIM, **(small | options), rngs=nnx.Rngs(0))


def tables(**rows):
  keys = jax.random.split(jax.random.key(1), len(rows))
  names = zip(rows.items(), keys, strict=True)
  return {name: jax.random.normal(key, (count, DIM)) for (name, count), key in names}


def stays(steps=600, **options):
  """Accuracy by whether the place was left less than a memory ago, after training."""
  memory, rest = split(make(places=len(STAYS), **options))
  params = {"memory": memory} | tables(thing=THINGS, asked=len(STAYS), head=THINGS)

  def loss(params, key, step):
    rows, memory = (
      uneven_stay.sample(key, BATCH, STAYS, things=THINGS),
      join(params["memory"], rest),
    )
    state = memory.write(params["thing"][rows.thing], memory.init_state(BATCH), place=rows.place)
    y = memory.read(params["asked"][rows.asked][:, None], state).mean(axis=1)
    logits = y @ params["head"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows.answer).mean()
    return nats, jnp.argmax(logits, axis=1) == rows.answer

  params = train(params, loss, steps=steps)
  hits, old = [], []
  for index in range(16):
    key = jax.random.key(10_000 + index)
    hits.append(np.asarray(jax.jit(loss)(params, key, 0)[1]))
    old.append(np.asarray(uneven_stay.sample(key, BATCH, STAYS, things=THINGS).since) >= 8)
  hits, old = np.concatenate(hits), np.concatenate(old)
  return hits[~old].mean(), hits[old].mean()


def test_a_queue_for_each_place_survives_a_long_stay():
  recent, old = stays(policy="place", chunking="place", chunk=2, top_k=3)
  recent_of_one, old_of_one = stays(policy="fifo", chunking="place", chunk=2, top_k=3)
  print(f"a queue a place: {recent:.3f}, before the long stay {old:.3f}")
  print(f"one queue as large: {recent_of_one:.3f}, {old_of_one:.3f}; chance {1 / THINGS}")
  assert recent > 0.98 and old > 0.95
  assert recent_of_one > 0.98 and old_of_one < 1.2 / THINGS


def answers(steps=1500):
  """After joint training: nats of the answers by task and policy `[4, 4]`, and the allocator."""
  memory, rest = split(make(places=uneven_stay.PLACES, chunk=2, top_k=4))
  chooser, structure = split(AdaptiveMemoryAllocator(4, rngs=nnx.Rngs(1)))
  params = {"memory": memory, "chooser": chooser}
  params |= tables(cue=uneven_stay.FRAMES, thing=THINGS, head=THINGS)
  epsilon = optax.linear_schedule(1.0, 0.2, steps // 2)

  def answer(params, rows, policy):
    memory = join(params["memory"], rest)
    items = params["cue"][rows.cue] + params["thing"][rows.thing]
    state = memory.init_state(BATCH)
    state = memory.write(items, state, place=rows.place, policy=policy)
    logits = memory.read(params["cue"][rows.asked][:, None], state).mean(axis=1) @ params["head"].T
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows.answer)
    return nats, jnp.argmax(logits, axis=1) == rows.answer

  def loss(params, key, step):
    chooser, rows = join(params["chooser"], structure), uneven_stay.sample_tasks(key, BATCH)
    policy = chooser.choose(rows.task, epsilon=epsilon(step), key=key)
    nats, hits = answer(params, rows, policy)
    return nats.mean() + 0.1 * chooser.loss(rows.task, policy, -nats), hits

  params = train(params, loss, steps=steps)

  @jax.jit
  def test(key, policy):
    rows = uneven_stay.sample_tasks(key, BATCH)
    nats, hits = answer(params, rows, policy)
    return [a.reshape(-1, 4).mean(axis=0) for a in (nats, hits)]

  each = [jnp.full(BATCH, policy) for policy in range(4)]
  keys = jax.random.split(jax.random.key(99), 16)
  found = np.mean([[test(key, policy) for policy in each] for key in keys], axis=0)
  return found[:, 0].T, found[:, 1].T, join(params["chooser"], structure)


def test_the_allocator_learns_the_right_policy_of_each_task():
  nats, hits, chooser = answers()
  chosen = chooser.choose(jnp.arange(4))
  print("nats by task and policy", np.round(nats, 3), np.round(hits, 3), sep="\n")
  np.testing.assert_array_equal(chosen, np.arange(4))  # as tasks are numbered
  # Values follow losses that still fall; policies differ by 0.5 nats and more.
  np.testing.assert_allclose(chooser(jnp.arange(4)), -nats, atol=0.25)
  own, fixed = hits.diagonal().mean(), hits.mean(axis=0).max()
  print(f"chosen policies: {own:.3f} right; the best fixed one: {fixed:.3f}")
  assert own > 0.97 and fixed < 0.75
