"""Memory replay back-propagation: the gradient of the whole sequence, from a few of its states."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Replay, as_state, channel, join, leaf, scan, split
from memjax.core.layers import dropout
from memjax.core.replay import as_replay
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import NeuralTuringMachine
from memjax.transformer import Attention, Stack

B, D, SLOTS, WIDE = 2, 4, 8, 64

slow = pytest.mark.slow
REPLAYS = [
  Replay(),
  Replay(every=5),  # 12 steps are two groups and a rest
  Replay(every=4, steps=False),
  Replay(every=4, offload="pinned_host"),
  *(pytest.param(replay, marks=slow) for replay in (
    Replay(every=None), Replay(every=12), Replay(every=64), Replay(offload="pinned_host"),
  )),
]  # fmt: skip


@as_state
class Slots:
  memory: jax.Array = leaf("slots", "embed")
  count: jax.Array = leaf()


def start(memory):
  return Slots(memory, jnp.zeros(B, jnp.int32))


def cell(weights, x, state, context):
  """Reads and writes the slots through a wide layer under dropout."""
  wide = jnp.tanh((state.memory + x[:, None]) @ weights["up"])
  wide = dropout(wide, 0.5, None if context is None else context.key)
  channel.emit("mean", jnp.mean(wide))
  update = wide @ weights["down"] + channel.tap("tap", state.memory.shape)
  memory = jnp.tanh(0.8 * state.memory + update)
  return jnp.mean(memory, axis=1), Slots(memory, state.count + 1)


def weights():
  keys = jax.random.split(jax.random.key(0))
  return {"up": jax.random.normal(keys[0], (D, WIDE)) / 2,
          "down": jax.random.normal(keys[1], (WIDE, D)) / 8}  # fmt: skip


def first():
  return jax.random.normal(jax.random.key(1), (B, SLOTS, D))


def loss(remat, weights, memory, x, *, reset=None, valid=None, key=None):
  context, length = None if key is None else Context(key=key), x.shape[1]
  y, last = scan(
    functools.partial(cell, weights), x, start(memory), init=start(jnp.tanh(memory)),
    reset=reset, valid=valid, context=context, remat=remat,
  )  # fmt: skip
  return jnp.mean(jnp.sin(3 * y)) + jnp.mean(last.memory * last.count[:, None, None]) / length


def text(length):
  return jax.random.normal(jax.random.key(2), (B, length, D))


FLAGS = {
  "key": jax.random.key(7),
  "reset": jnp.zeros((B, 12), bool).at[0, 5].set(True),
  "valid": jnp.ones((B, 12), bool).at[1, 6:8].set(False),
}


@functools.cache
def gradient(remat, length=12, flags=()):
  value = functools.partial(loss, remat, **{name: FLAGS[name] for name in flags})
  return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(weights(), first(), text(length))


def close(a, b):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), a, b)


# The same gradient.


@pytest.mark.parametrize("replay", REPLAYS, ids=str)
def test_values_and_gradients_under_dropout_and_flags(replay):
  close(gradient(replay, flags=tuple(FLAGS)), gradient(None, flags=tuple(FLAGS)))
  assert abs(gradient(None, flags=tuple(FLAGS))[0] - gradient(None)[0]) > 1e-3


def test_one_step_is_redone_too():
  close(gradient(Replay(), length=1), gradient(None, length=1))


def test_the_gradient_of_the_first_state_against_differences():
  """In float64 differences are exact to 1e-6."""
  with jax.enable_x64(True):
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64), tree)  # noqa: E731
    weight, memory, x = wide(weights()), wide(first()), wide(text(6))
    value = jax.jit(lambda memory: loss(Replay(every=2), weight, memory, x))
    got = jax.jit(jax.grad(value))(memory)
    for place in [(0, 0, 0), (1, 3, 2), (0, 7, 3)]:
      step = jnp.zeros_like(memory).at[place].set(1e-5)
      difference = (value(memory + step) - value(memory - step)) / 2e-5
      assert float(got[place]) == pytest.approx(float(difference), rel=1e-6)


def test_emissions_leave_and_taps_enter_as_without():
  def both(remat):
    def value(taps):
      with channel.collect(taps) as frame:
        total = loss(remat, weights(), first(), text(7))
      return total + jnp.sum(frame.emitted["mean"] ** 2), frame.emitted["mean"]

    taps = {"tap": jnp.zeros((7, B, SLOTS, D))}
    return jax.jit(jax.value_and_grad(value, has_aux=True))(taps)

  plain = (_, means), taps = both(None)
  assert means.shape == (7,) and len(np.unique(means)) == 7
  assert np.all(np.abs(taps["tap"]).max(axis=(1, 2, 3)) > 0)
  close(both(Replay(every=3)), plain)


# Truncated back-propagation.


@pytest.mark.parametrize("every", [1, 3])
def test_no_gradient_crosses_a_detached_state(every):
  """The gradient of the last step's output reaches back to the last detached state."""
  remat, length = Replay(detach_every=every), 7

  def value(memory, x):
    y, _ = scan(
      functools.partial(cell, weights()), x, start(memory), init=start(memory), remat=remat
    )
    return jnp.sum(jnp.sin(y[:, -1]))

  to_first, to_text = jax.jit(jax.grad(value, argnums=(0, 1)))(first(), text(length))
  np.testing.assert_array_equal(to_first, 0)
  reached = np.abs(to_text).max(axis=(0, 2)) > 0
  assert reached.tolist() == [t >= (length - 1) // every * every for t in range(length)]


def test_detached_once_a_sequence_only_the_first_state_is_given():
  _, (dweights, dmemory, dx) = gradient(Replay(every=4, detach_every=12))
  _, (want, whole, dtext) = gradient(None)
  close((dweights, dx), (want, dtext))
  assert np.all(dmemory == 0) and np.all(whole != 0)


def test_a_reset_state_is_learned_though_the_given_one_is_not():
  _, (_, memory, _) = gradient(Replay(detach_every=3), flags=("reset",))
  assert np.all(memory[1] == 0) and np.all(memory[0] != 0)


# What is kept.


def kept(remat, length) -> int:
  value = functools.partial(loss, remat)
  lowered = jax.jit(jax.grad(value, argnums=(0, 1))).lower(weights(), first(), text(length))
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_by_a_state_a_step():
  state, activations = 4 * B * SLOTS * D, 4 * B * SLOTS * WIDE
  slopes = {}
  lengths = np.array([4, 8, 16, 32])
  for name, remat in {"plain": None, "replay": Replay()}.items():
    sizes = np.array([kept(remat, length) for length in lengths])
    slopes[name] = np.polyfit(lengths, sizes, 1)[0]
    np.testing.assert_allclose(np.diff(sizes) / np.diff(lengths), slopes[name], rtol=0.1)
  per_step = 4 * B * D * 3  # x, y and dy
  assert state <= slopes["replay"] <= 1.5 * (state + per_step)
  assert slopes["plain"] >= activations + state


def test_groups_of_the_square_root_keep_less():
  length = 64
  sizes = {every: kept(Replay(every=every), length) for every in (1, 2, 8, 32)}
  assert sizes[8] == min(sizes.values())
  saved = (length - 2 * math.isqrt(length)) * 4 * B * SLOTS * D
  assert sizes[1] - sizes[8] > 0.7 * saved


# Memories that take it.


def rmt(remat):
  attention = functools.partial(Attention, heads=2, span="span")
  body = functools.partial(Stack, pattern=[attention], dropout=0.3)
  return RecurrentMemoryTransformer(
    D, body=body, segment=2, memory=1, remat=remat, rngs=nnx.Rngs(0)
  )


def ntm(remat, slots=5, width=3):
  sizes = {"slots": slots, "width": width, "hidden": 4}
  return NeuralTuringMachine(D, **sizes, remat=remat, rngs=nnx.Rngs(0))


def trained(make, remat):
  """The gradient of a loss of the memory, lowered for an x, and the trained arrays."""
  trainable, rest = split(make(remat))

  def value(trainable, x):
    memory = join(trainable, rest)
    context = Context(key=jax.random.key(3))
    y, _ = memory(x, memory.init_state(x.shape[0]), context=context)
    return jnp.mean(jnp.sin(y))

  return jax.jit(jax.value_and_grad(value)), trainable


@pytest.mark.parametrize(
  ("make", "remat"),
  [(rmt, Replay(every=None)), pytest.param(ntm, Replay(every=4, steps=False), marks=slow)],
)
def test_memories_train_the_same(make, remat):
  (got, arrays), (want, _) = trained(make, remat), trained(make, None)
  close(got(arrays, text(10)), want(arrays, text(10)))


def test_a_turing_machine_over_4096_tokens_keeps_few_matrices():
  make = functools.partial(ntm, slots=64, width=16)
  step, arrays = trained(make, Replay(every=64, steps=False))
  x = jax.ShapeDtypeStruct((1, 4096, D), jnp.float32)
  memory = step.lower(arrays, x).compile().memory_analysis().temp_size_in_bytes
  assert memory < 4 * 64 * 16 * 4096 / 3  # a third of all the matrices


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"every": 0}, "every=0 must be an integer >= 1"),
    ({"detach_every": 1.5}, "detach_every=1.5 must be an integer"),
    ({"offload": "disk"}, "offload='disk' is not one of None, 'pinned_host'"),
    ({"steps": False}, "steps=False with every=1"),
  ],
)
def test_what_is_out_of_range_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    Replay(**options)


def test_remat_is_a_replay_or_its_name():
  assert (as_replay(None), as_replay("full")) == (None, Replay())
  assert as_replay("sqrt") == Replay(every=None, steps=False)
  with pytest.raises(
    ValueError, match=r"remat='dots' is not one of None, 'full', 'sqrt', Replay\("
  ):
    NeuralTuringMachine(D, remat="dots", rngs=nnx.Rngs(0))
