"""Memoria answers in a later segment what the first one told, and not when it is reset."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, replace, split
from memjax.slots import Memoria, MemoriaRead
from memjax.tasks import segment_recall
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

pytestmark = pytest.mark.slow
WORLD, BATCH, SEGMENT, CHUNK, STEPS = segment_recall.World(), 32, 4, 50, 3000


def made():
  layers = [
    functools.partial(Attention, heads=2),
    functools.partial(MemoriaRead, heads=2, init_std=0.2),
    FeedForward,
  ]
  body = functools.partial(
    Memoria, body=functools.partial(Stack, pattern=layers), segment=SEGMENT, working=2,
    short_term=4, engrams=20, remind=(4, 4), depth=2, life=3.0, gain=4.0, init_std=0.2,
  )  # fmt: skip
  return LanguageModel(WORLD.vocab, 32, body=body, rngs=nnx.Rngs(0))


def asked(model, key, gap, reset=False, often=0.0):
  """Loss, and accuracy at the last token after `2 + gap` segments; earlier ones ask `often`."""
  recalls = segment_recall.sample(key, BATCH, WORLD, segment=SEGMENT, gap=gap)
  asks = jax.random.bernoulli(jax.random.fold_in(key, 1), often, recalls.ids.shape[:2])
  asks = asks.at[:, 0].set(False).at[:, -1].set(True)
  ids = recalls.ids
  ids = ids.at[:, :, -1].set(jnp.where(asks, ids[:, -1:, -1], ids[:, :, -1])).reshape(BATCH, -1)
  flags = jnp.zeros(ids.shape, bool).at[:, ::SEGMENT].set(reset)
  logits = model(ids, model.init_state(BATCH), reset=flags)[0][:, SEGMENT - 1 :: SEGMENT]
  answer = jnp.broadcast_to(recalls.answer[:, None], asks.shape)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, answer)
  hit = jnp.argmax(logits[:, -1], axis=-1) == recalls.answer
  return jnp.sum(jnp.where(asks, nats, 0)) / jnp.sum(asks), jnp.mean(hit)


@functools.partial(jax.jit, static_argnums=3)
def chunk(carry, keys, reset, optimiser):
  """Some steps on two segments in between."""
  rest = split(made())[1]

  def step(carry, key):
    params, moments = carry
    loss = lambda params: asked(join(params, rest), key, 2, reset, 0.5)  # noqa: E731
    (_, hit), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, moments = optimiser.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), hit

  return jax.lax.scan(step, carry, keys)


def trained(optimiser, steps, reset):
  """The model after training, and its accuracy in the end."""
  params, rest = split(made())
  carry, found = (params, optimiser.init(params)), 0.0
  for done in range(0, steps, CHUNK):
    carry, hits = chunk(carry, jax.random.split(jax.random.key(done), CHUNK), reset, optimiser)
    found = float(np.mean(hits[-20:]))
    if found > 0.99:
      break
  return join(carry[0], rest), found


@functools.partial(jax.jit, static_argnums=1)
def accuracy(model, gap):
  keys = jax.random.split(jax.random.key(7), 16)
  return jnp.mean(jax.lax.map(lambda key: asked(model, key, gap)[1], keys))


def test_a_fact_is_recalled_after_more_segments_than_an_engram_first_lives():
  schedule = optax.cosine_decay_schedule(3e-3, STEPS)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
  model, _ = trained(optimiser, STEPS, False)
  known = {gap: float(accuracy(model, gap)) for gap in (2, 8)}
  mortal = float(accuracy(replace(model, gain=0.0), 8))
  _, wiped = trained(optimiser, 300, True)
  print(f"recalled {known}, {mortal:.3f} after 8 with no gain, reset {wiped:.3f}, chance 0.250")
  assert known[2] > 0.95 and known[8] > 0.8
  assert mortal < known[8] - 0.1  # what is left is told from memory to memory
  assert wiped < 0.35
