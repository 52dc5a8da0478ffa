"""ELMUR carries a cue from slot to slot: trained on short corridors, it walks a million steps."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.core import join, split, state_bytes
from memjax.slots import ELMUR
from memjax.tasks import corridor

pytestmark = pytest.mark.slow
SEGMENT, DIM, BATCH, STEPS = 10, 16, 32, 400
LONGEST = 6  # segments in training: with two slots the cue must be written three times


def train():
  """Parameters after training on corridors of 1..LONGEST segments, and the rest of the model."""
  layer = ELMUR(DIM, heads=2, segment=SEGMENT, slots=2, distance=64, rngs=nnx.Rngs(0))
  memory, rest = split(layer)
  keys = jax.random.split(jax.random.key(0), 2)
  inner, outer = jax.random.normal(keys[0], (2, DIM)), jax.random.normal(keys[1], (DIM, 2))
  params = {"memory": memory, "embed": inner, "head": outer * DIM**-0.5}
  schedule = optax.cosine_decay_schedule(3e-3, STEPS)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
  lengths = tuple(SEGMENT * (n + 1) for n in range(LONGEST))

  def loss(params, key):
    corridors, layer = corridor.sample(key, BATCH, lengths), join(params["memory"], rest)
    x = corridor.steps(corridors, 0, SEGMENT * LONGEST) @ params["embed"]
    y, _ = layer(x, layer.init_state(BATCH))
    last = jnp.take_along_axis(y, (corridors.length - 1)[:, None, None], axis=1)[:, 0]
    logits = last @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, corridors.answer).mean()

  @jax.jit
  def run(params, moments, keys):
    def step(carry, key):
      params, moments = carry
      updates, moments = optimiser.update(jax.grad(loss)(params, key), moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, moments), keys)[0][0]

  return run(params, optimiser.init(params), jax.random.split(jax.random.key(1), STEPS)), rest


@functools.partial(jax.jit, static_argnums=4)
def accuracy(params, rest, corridors, segments, wipe: bool = False):
  """Of turns at the end of corridors walked a segment at a time, from state to state."""
  layer = join(params["memory"], rest)
  first = layer.init_state(BATCH)

  def walk(state, index):
    x = corridor.steps(corridors, index * SEGMENT, SEGMENT) @ params["embed"]
    y, new = layer(x, state)
    return (first if wipe else new), y[:, -1]

  state = jax.lax.fori_loop(0, segments - 1, lambda index, state: walk(state, index)[0], first)
  _, last = walk(state, segments - 1)
  return jnp.mean(jnp.argmax(last @ params["head"], axis=-1) == corridors.answer)


def test_the_cue_survives_a_million_steps_in_constant_memory():
  params, rest = train()
  found = {}
  for segments in (3, 50, 500, 100_000):
    corridors = corridor.sample(jax.random.key(2), BATCH, (segments * SEGMENT,))
    found[segments] = float(accuracy(params, rest, corridors, segments))
    print(f"{segments * SEGMENT} steps: accuracy {found[segments]:.3f}")
  assert found == dict.fromkeys(found, 1.0)
  corridors = corridor.sample(jax.random.key(2), BATCH, (50 * SEGMENT,))
  wiped = float(accuracy(params, rest, corridors, 50, True))
  print(f"with its state reset at every segment: {wiped:.3f}")
  assert 0.2 < wiped < 0.8
  compiled = accuracy.lower(params, rest, corridors, 100_000).compile()  # for any number of them
  assert compiled.memory_analysis().temp_size_in_bytes < 1_000_000
  layer = join(params["memory"], rest)
  assert state_bytes(layer.init_state(1)) == 4 * (2 * DIM + 2 + 1 + 1 + 3 * SEGMENT * DIM)
