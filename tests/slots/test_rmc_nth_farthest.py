"""The Relational Memory Core compares what it is shown, where an LSTM of equal state cannot."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from memjax.core import join, scan, split
from memjax.core.layers import Linear
from memjax.slots import RelationalMemory
from memjax.slots.controllers import LSTM
from memjax.tasks import nth_farthest
from memjax.testing import train_small

pytestmark = pytest.mark.slow
OBJECTS, FEATURES, BATCH, CHUNK = 3, 2, 256, 500
DIM = FEATURES + 3 * OBJECTS


class Reader(nnx.Module):
  """An answer from what a cell of 128 numbers holds after the last object."""

  def __init__(self, kind: str, rngs: nnx.Rngs):
    if kind == "rmc":
      self.cell = RelationalMemory(DIM, slots=4, heads=2, head_size=16, project=False, rngs=rngs)
    else:
      self.cell = LSTM(DIM, 0, 128, rngs=rngs)
    self.mlp = nnx.List([Linear(size, 64, bias=True, rngs=rngs) for size in (128, 64)])
    self.out = Linear(64, OBJECTS, bias=True, rngs=rngs)

  def __call__(self, x):
    state = self.cell.init_state(x.shape[0])
    if isinstance(self.cell, RelationalMemory):
      y, _ = self.cell(x, state)
    else:
      nothing, cell = jnp.zeros((x.shape[0], 0)), self.cell
      step = lambda x, state, context: cell.step(x, nothing, state)  # noqa: E731
      y, _ = scan(step, cell.inputs(x), state, init=None)
    h = y[:, -1]
    for layer in self.mlp:
      h = jax.nn.relu(layer(h))
    return self.out(h)


def accuracy(kind: str, steps: int) -> float:
  """On new questions at the end of a training on answers alone."""
  params, rest = split(Reader(kind, nnx.Rngs(0)))
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

  def loss(params, key):
    asked = nth_farthest.sample(key, BATCH, objects=OBJECTS, features=FEATURES)
    logits = join(params, rest)(asked.inputs)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, asked.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == asked.answer)

  return float(train_small(params, loss, optimiser, steps=steps, chunk=CHUNK, last=100)[1])


def test_attention_between_slots_compares_objects():
  rmc, lstm = accuracy("rmc", 3000), accuracy("lstm", 3000)
  # Rank 0, the reference itself, is read off the input; guessing between the others gives 2 / 3.
  print(f"N-th farthest of {OBJECTS}: {rmc:.3f}, LSTM {lstm:.3f}, without comparing 0.667")
  assert rmc > 0.9
  assert lstm < 0.75
