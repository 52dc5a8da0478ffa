"""The Neural Turing Machine learns to copy, to twice the length; without its means it does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import NeuralTuringMachine
from memjax.tasks import copying

pytestmark = pytest.mark.slow
LONGEST, BATCH, STEPS, CHUNK = 10, 32, 4000, 250


def train(**options):
  """The machine after the last chunk that was best at length 10, and its wrong bits there."""
  # At this size a trained first memory needs fewer steps than a constant one.
  sizes = {"out": 8, "slots": 32, "start": "trained", **options}
  params, rest = split(NeuralTuringMachine(9, **sizes, rngs=nnx.Rngs(0)))
  optimiser = optax.chain(optax.clip_by_global_norm(50.0), optax.adam(1e-3))

  def loss(params, key):
    ntm, copies = join(params, rest), copying.sample(key, BATCH, longest=LONGEST)
    y, _ = ntm(copies.inputs, ntm.init_state(BATCH))
    nats = optax.sigmoid_binary_cross_entropy(y, copies.targets)
    return jnp.sum(nats * copies.mask[:, :, None]) / BATCH

  @jax.jit
  def chunk(carry, key):
    def step(carry, key):
      params, moments = carry
      updates, moments = optimiser.update(jax.grad(loss)(params, key), moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))[0]

  carry, best, least = (params, optimiser.init(params)), None, np.inf
  for index in range(STEPS // CHUNK):
    carry = chunk(carry, jax.random.key(index))
    ntm = join(carry[0], rest)
    wrong = wrong_bits(ntm, LONGEST)
    if wrong <= least:
      best, least = ntm, wrong
  return best, least


@functools.partial(jax.jit, static_argnums=(1, 2))
def errors(ntm, length, wipe):
  copies = copying.sample(jax.random.key(10**6), 200, shortest=length, longest=length)
  first = ntm.init_state(200)

  def step(state, x_t):
    y, state = ntm(x_t[:, None], state)
    kept = type(state)(**{**vars(state), "memory": first.memory if wipe else state.memory})
    return kept, y[:, 0]

  _, y = jax.lax.scan(step, first, jnp.moveaxis(copies.inputs, 1, 0))
  return copying.wrong_bits(jnp.moveaxis(y, 0, 1), copies).mean()


def wrong_bits(ntm, length, wipe=False):
  """Mean wrong bits of a sequence; `wipe` empties the memory before every step."""
  return float(errors(ntm, length, wipe))


def test_it_copies_and_goes_on_to_twice_the_length():
  ntm, least = train()
  print(f"wrong bits: {least:.3f} at 10, {wrong_bits(ntm, 20):.3f} at 20")
  assert least < 0.1
  assert wrong_bits(ntm, 20) < 1
  assert wrong_bits(ntm, LONGEST, wipe=True) > 20  # half of the 80 bits by chance


def test_without_shifts_it_does_not():
  ntm, least = train(shift=0)
  print(f"wrong bits without shifts: {least:.3f} at 10, {wrong_bits(ntm, 20):.3f} at 20")
  assert wrong_bits(ntm, 20) > 10
