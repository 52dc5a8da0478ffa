"""Through a PMIEncoder's memories a question finds its pair among a set of them; through memories
that nothing writes, it does not."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import PMI, PMIEncoder
from memjax.transformer import FeedForward

pytestmark = pytest.mark.slow
SYMBOLS, DIM, BATCH, CHUNK = 4, 16, 64, 50
SHUT = {
  "mixer/step/input_bias": -jnp.inf,
  "mixer/step/forget_bias": jnp.inf,
  "mixer/step/ltm_norm/scale": 0.0,
}


def sample(key):
  """Ids `[B, 5, 2]`: each key with a value in any order, then a key without; its value `[B]`."""
  keys = jax.random.split(key, 3)
  order = jnp.argsort(jax.random.uniform(keys[0], (BATCH, SYMBOLS)), axis=1)
  values = jax.random.randint(keys[1], (BATCH, SYMBOLS), 0, SYMBOLS)
  pairs = jnp.stack([order, SYMBOLS + values], axis=-1)
  asked = jax.random.randint(keys[2], (BATCH, 1), 0, SYMBOLS)
  question = jnp.stack([asked, jnp.full_like(asked, 2 * SYMBOLS)], axis=-1)
  answer = jnp.sum(jnp.where(order == asked, values, 0), axis=1)
  return jnp.concatenate([pairs, question], axis=1), answer


def make():
  mixer = functools.partial(
    PMI, segment=SYMBOLS + 1, slots=4, heads=2, key_size=8, long_term=2, top_k=2, causal=False,
    correction=False,
  )  # fmt: skip
  feed_forward = functools.partial(FeedForward, hidden=32)
  return PMIEncoder(DIM, mixer=mixer, feed_forward=feed_forward, layers=2, rngs=nnx.Rngs(0))


def train():
  """`(shut, steps) -> accuracy`; gates and the long-term memory's scale are not trained."""
  encoder, rest = split(make())
  keys = jax.random.split(jax.random.key(0), 2)
  words = jax.random.normal(keys[0], (2 * SYMBOLS + 1, DIM))
  head = jax.random.normal(keys[1], (DIM, SYMBOLS)) * DIM**-0.5
  optimiser = optax.adam(3e-3)

  def loss(params, key):
    encoder, words, head = params
    (ids, answer), memory = sample(key), join(encoder, rest)
    y, _ = memory(words[ids].sum(axis=2), memory.init_state(BATCH))
    nats = optax.softmax_cross_entropy_with_integer_labels(y[:, -1] @ head, answer)
    return nats.mean(), jnp.mean(jnp.argmax(y[:, -1] @ head, axis=-1) == answer)

  @jax.jit
  def chunk(carry, key):
    def step(carry, key):
      params, moments = carry
      (_, hit), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
      grads[0].update({name: jnp.zeros_like(grads[0][name]) for name in SHUT})
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), hit

    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))

  def accuracy(shut: bool, steps: int) -> float:
    own = {name: jnp.full_like(encoder[name], a) for name, a in SHUT.items()}
    params, hits = (encoder | (own if shut else {}), words, head), jnp.zeros(1)
    carry = params, optimiser.init(params)
    for index in range(steps // CHUNK):
      carry, hits = chunk(carry, jax.random.key(index))
      if hits[-10:].mean() > 0.98:
        break
    return float(hits[-10:].mean())

  return accuracy


def test_a_question_finds_its_pair_through_the_memories_alone():
  accuracy = train()
  written, shut = accuracy(False, 1000), accuracy(True, 500)
  print(f"accuracy: {written:.3f}, with memories that nothing writes {shut:.3f}, chance 0.250")
  assert written > 0.95
  assert shut < 0.35
