"""The side channel through layers of a stack and segments of a wrapper, rematerialised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Memory, Stateless, Table, channel, join, param, split
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.transformer import Stack

DIM, ROWS, LAYERS, SEGMENTS, SEGMENT, TOKENS = 5, 11, 3, 4, 2, 1


class Lookup(Memory):
  """Reads one row of a table a token, has a loss, and takes a tap where the rows come in."""

  def __init__(self, dim, *, rngs):
    init = nnx.initializers.normal(1.0)
    self.query = param(rngs, init, (dim, ROWS), axes=("embed", "rows"))
    self.table = param(rngs, init, (ROWS, dim), axes=("rows", "value"), kind=Table)

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    ids = jnp.argmax(x @ self.query[...], axis=-1)
    channel.emit("ids", ids)
    channel.emit("loss", jnp.mean(jnp.sin(x)))
    return jnp.tanh(self.table[...][ids] + channel.tap("rows", x.shape)), state


def model():
  stack = functools.partial(Stack, pattern=[Lookup], repeats=LAYERS, remat="full")
  return RecurrentMemoryTransformer(
    DIM, body=stack, segment=SEGMENT, memory=TOKENS, causal_memory=True, remat="full",
    rngs=nnx.Rngs(0),
  )  # fmt: skip


def loss(trainable, rest, x, taps):
  memory = join(trainable, rest)
  with channel.collect(taps) as frame:
    y, _ = memory(x, memory.init_state(x.shape[0]))
  emitted = {name.rsplit("/", 1)[-1]: value for name, value in frame.emitted.items()}
  return jnp.sum(jnp.square(y)) + jnp.sum(emitted["loss"]), emitted


@pytest.mark.parametrize("graph_mode", [True, False])
def test_losses_leave_and_taps_enter_through_stack_segments_and_remat(graph_mode):
  with nnx.set_graph_mode(graph_mode):
    trainable, rest = split(model())
    x = jax.random.normal(jax.random.key(1), (2, SEGMENTS * SEGMENT, DIM))
    wanted = channel.wanted(lambda x: join(trainable, rest)(x, model().init_state(2)), x)
    taps = {name: jnp.zeros(tap.shape, tap.dtype) for name, tap in wanted.items()}
    step = jax.jit(jax.grad(loss, argnums=(0, 3), has_aux=True))
    (dense, rows), emitted = step(trainable, rest, x, taps)

  length = SEGMENT + 2 * TOKENS
  assert emitted["loss"].shape == (SEGMENTS, LAYERS)
  assert len(set(np.asarray(emitted["loss"]).ravel().tolist())) == SEGMENTS * LAYERS
  assert emitted["ids"].shape == (SEGMENTS, LAYERS, 2, length)
  (gradient,) = rows.values()
  assert gradient.shape == (SEGMENTS, LAYERS, 2, length, DIM)
  assert np.all(np.abs(gradient).max(axis=(2, 3, 4)) > 0)  # all 12 arrived

  touched = jnp.zeros((LAYERS, ROWS, DIM))
  layer = jnp.arange(LAYERS).reshape(1, LAYERS, 1, 1)
  touched = touched.at[layer, emitted["ids"]].add(gradient)
  (table,) = [g for name, g in dense.items() if name.endswith("table")]
  np.testing.assert_allclose(touched, table, rtol=1e-5, atol=1e-6)


def test_without_a_collector_nothing_changes():
  memory = model()
  x = jax.random.normal(jax.random.key(1), (2, SEGMENTS * SEGMENT, DIM))
  plain, _ = memory(x, memory.init_state(2))
  with channel.collect():
    collected, _ = memory(x, memory.init_state(2))
  np.testing.assert_allclose(plain, collected, rtol=1e-6, atol=1e-6)
