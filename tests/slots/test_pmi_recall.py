"""PMI answers in a later segment what the first one told, and not when its memories are reset."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import PMI
from memjax.tasks import segment_recall
from memjax.transformer import FeedForward, LanguageModel, Stack

pytestmark = pytest.mark.slow
WORLD, BATCH, SEGMENT, CHUNK = segment_recall.World(), 32, 16, 50


def accuracy(*, keep: bool, steps: int) -> float:
  """Of the value that was told two segments ago; only the memories cross a border."""
  pmi = functools.partial(PMI, segment=SEGMENT, slots=4, heads=2, key_size=16, long_term=2)
  feed_forward = functools.partial(FeedForward, hidden=64)
  body = functools.partial(Stack, pattern=(pmi, feed_forward), repeats=2)
  model = LanguageModel(WORLD.vocab, 32, body=body, rngs=nnx.Rngs(0))
  params, rest = split(model)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

  def loss(params, key):
    model = join(params, rest)
    recalls = segment_recall.sample(key, BATCH, WORLD, segment=SEGMENT, gap=1)
    state, logits = model.init_state(BATCH), jnp.zeros(())
    for ids in jnp.moveaxis(recalls.ids, 1, 0):
      logits, state = model(ids, state if keep else model.init_state(BATCH))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, -1], recalls.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits[:, -1], axis=-1) == recalls.answer)

  @jax.jit
  def chunk(carry, key):
    def step(carry, key):
      params, moments = carry
      (_, hit), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), hit

    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))

  carry, hits = (params, optimiser.init(params)), jnp.zeros(1)
  for index in range(steps // CHUNK):
    carry, hits = chunk(carry, jax.random.key(index))
    if hits[-10:].mean() > 0.98:
      break
  return float(hits[-10:].mean())


def test_a_fact_is_recalled_two_segments_later_through_the_memories_alone():
  kept, reset = accuracy(keep=True, steps=500), accuracy(keep=False, steps=200)
  print(f"recalled: {kept:.3f}, with memories reset {reset:.3f}, chance 0.250")
  assert kept > 0.95
  assert reset < 0.35
