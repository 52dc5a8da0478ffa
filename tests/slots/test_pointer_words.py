"""A pointer copies new words that its window holds; without one, or further back, none can."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import PointerMixtureNetwork, pointer_targets
from memjax.tasks import unknown_words

pytestmark = pytest.mark.slow
VOCAB, NAMES, WINDOW, LENGTH, DIM, STEPS = 16, 6, 8, 40, 32, 1500


def draw(seed, batch):
  sizes = {"names": NAMES, "vocab": VOCAB, "farthest": 2 * WINDOW}
  return unknown_words.sample(seed, batch, LENGTH, **sizes)


def test_new_words_are_copied_from_the_window_only():
  net = PointerMixtureNetwork(
    DIM, vocab=VOCAB, window=WINDOW, hidden=DIM, init=0.3, rngs=nnx.Rngs(0)
  )
  memory, rest = split(net)
  params = {"net": memory, "embed": jax.random.normal(jax.random.key(0), (VOCAB, DIM))}
  optimiser = optax.chain(
    optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
  )
  ids = jnp.asarray(draw(0, 4096).ids)

  def predict(params, ids):
    net = join(params["net"], rest)
    x = params["embed"][jnp.where(ids < VOCAB, ids, 0)[:, :-1]]
    return net(x, net.init_state(ids.shape[0]))[0]

  def loss(params, ids):
    classes, weights = pointer_targets(ids, vocab=VOCAB, window=WINDOW, unknown=0)
    logs = jnp.take_along_axis(predict(params, ids), classes[:, :, None], axis=2)[:, :, 0]
    return -jnp.sum(logs * weights) / jnp.sum(weights)

  @jax.jit
  def run(params, moments, keys):
    def step(carry, key):
      params, moments = carry
      rows = jax.random.randint(key, (32,), 0, ids.shape[0])
      grads = jax.grad(loss)(params, ids[rows])
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, moments), keys)[0][0]

  params = run(params, optimiser.init(params), jax.random.split(jax.random.key(1), STEPS))
  test = draw(1, 256)
  classes, _ = pointer_targets(test.ids, vocab=VOCAB, window=WINDOW, unknown=0)
  y, distance = np.asarray(jax.jit(predict)(params, jnp.asarray(test.ids))), test.distance[:, 1:]
  right = y.argmax(-1) == np.asarray(classes)
  near, far = (distance > 0) & (distance <= WINDOW), distance > WINDOW
  words = np.where(distance > 0, y[..., :VOCAB].argmax(-1) == test.ids[:, 1:], False)
  print(
    f"copied within the window {right[near].mean():.3f}, by words alone {words[near].mean():.3f}"
  )
  assert right[near].mean() > 0.95
  assert words[near].mean() == 0  # the twin without a pointer has no class for them
  assert (np.asarray(classes)[far] == 0).all()  # out of the window: no place to point at
