"""MemBART answers in a later segment what the first one told, and not when its slots are reset."""

import functools

import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.slots import MemBART, SlotRead
from memjax.tasks import segment_recall
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack
from tests.slots import beside

pytestmark = pytest.mark.slow
WORLD, BATCH, DIM, SEGMENT = segment_recall.World(), 32, 32, 4


def accuracy(*, gap: int, reset: bool, steps: int) -> float:
  """Of the value that was told `gap` + 1 segments before it is asked for."""
  feed_forward = functools.partial(FeedForward, hidden=DIM)
  read = functools.partial(SlotRead, heads=2, source="encoded")
  decoder = functools.partial(
    Stack, pattern=[functools.partial(Attention, heads=2), read, feed_forward]
  )
  sizes = {"segment": SEGMENT, "slots": 4, "layers": 1, "heads": 2, "hidden": DIM}
  body = functools.partial(MemBART, decoder=decoder, **sizes)
  model = LanguageModel(WORLD.vocab, DIM, body=body, rngs=nnx.Rngs(0))
  flags = jnp.zeros((BATCH, (2 + gap) * SEGMENT), bool).at[:, ::SEGMENT].set(reset)

  def loss(run, key):
    told = segment_recall.sample(key, BATCH, WORLD, segment=SEGMENT, gap=gap)
    logits = run(told.ids.reshape(BATCH, -1), reset=flags)[:, -1]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, told.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == told.answer)

  settings = {"steps": steps, "learning_rate": 3e-3, "batch": BATCH}
  found = beside.train(model, loss, **settings, enough=lambda hits: hits > 0.98)
  return float(jnp.asarray(found))


def test_a_value_is_recalled_through_the_slots_alone():
  kept, reset = accuracy(gap=1, reset=False, steps=400), accuracy(gap=1, reset=True, steps=200)
  print(f"recalled: {kept:.3f}, with slots reset {reset:.3f}, chance 0.250")
  assert kept > 0.95
  assert reset < 0.35


def test_a_value_is_recalled_eight_segments_later():
  assert accuracy(gap=7, reset=False, steps=800) > 0.95
