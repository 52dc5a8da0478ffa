"""MemBART against its authors' computation, and the properties of its two streams."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from memjax.core import Context, channel, join, split
from memjax.core.usage import measured
from memjax.slots import MemBART, SlotRead, slots_as_tokens
from memjax.slots.membart import TwoStreams
from memjax.testing.case import jit
from memjax.transformer import Attention, Stack

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "membart.npz"
B, D, G, N = 2, 4, 3, 2
LAYERS = "encoder/layers/0+1x2/"
attention = functools.partial(Attention, heads=2, capacity=G)
read = functools.partial(SlotRead, heads=2, source="encoded")
decoder = functools.partial(Stack, pattern=[attention, read])


def make(**options):
  given: dict[str, Any] = {"decoder": decoder, "segment": G, "slots": N, "layers": 2, "heads": 2}
  return MemBART(D, **(given | {"hidden": 6} | options), rngs=nnx.Rngs(0))


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def start_from(memory, slots):
  """The first state with other slots."""
  state = memory.init_state(B)
  border = type(state.border)(slots, state.border.encoded, state.border.filled)
  return type(state)(border, state.kept, state.body)


def close(a, b, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


def normed(a):
  a = a - a.mean(axis=-1, keepdims=True)
  return a / np.sqrt(np.square(a).mean(axis=-1, keepdims=True) + 1e-5)


@jit
def run(memory, x, state, **flags):
  return memory(x, state, **flags)


@jit
def encode(memory, x, slots, valid=None, context=None):
  return memory.encoder(x, slots, valid, context)


@pytest.mark.golden
def test_equals_the_authors_computation():
  golden = dict(np.load(GOLDEN))
  given = {k.removeprefix("in/"): jnp.asarray(a) for k, a in golden.items() if k[:3] == "in/"}
  drawn, rest = split(make())
  names = {n: n.replace("encoder/", "").replace("0+1x2/", "") for n in drawn if n[:7] == "encoder"}
  assert set(names.values()) == set(given) - {"x", "memory"}
  valid = jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]], bool)
  reset = jnp.zeros((B, 2 * G), bool).at[1, G].set(True)

  def loss(given):
    memory = join(drawn | {ours: given[name] for ours, name in names.items()}, rest)
    x = jnp.moveaxis(given["x"], 0, 1).reshape(B, 2 * G, D)
    state = start_from(memory, given["memory"])
    border = memory(x, state, reset=reset, valid=valid)[1].border
    y = jnp.where(valid[:, G:, None], jnp.sin(border.encoded.values), 0)
    return jnp.sum(y) + jnp.sum(jnp.cos(border.memory)), border

  (_, border), gradient = jit(jax.value_and_grad(loss, has_aux=True))(given)
  shown = np.asarray(valid[:, G:])
  np.testing.assert_array_equal(border.encoded.seen, shown)
  np.testing.assert_allclose(border.encoded.values[shown], golden["h"][shown], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(border.memory, golden["m"], rtol=1e-5, atol=1e-6)
  for name, got in gradient.items():
    want = golden[f"grad/{name}"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(np.abs(want).max(), 0.1))


def shut(memory):
  """The model with alpha = 0, bit by bit."""
  params, rest = split(memory)
  return join(params | {"encoder/gate/bias": jnp.full(1, -1e4)}, rest)


def test_a_shut_gate_leaves_the_normed_old_slots_whatever_the_input():
  memory, slots = shut(make()), draw(0, B, N, D)
  one, other = (encode(memory, draw(seed, B, G, D), slots)[0] for seed in (1, 2))
  np.testing.assert_array_equal(one, other)
  close(one, normed(np.asarray(slots) + np.asarray(memory.encoder.bias[...])))


def test_the_bias_draws_slots_back_to_where_they_started():
  memory = shut(make(init_std=4.0))
  first, slots, found = normed(np.asarray(memory.encoder.bias[...])), draw(0, B, N, D), []
  for _ in range(12):
    slots = encode(memory, draw(1, B, G, D), slots)[0]
    found.append(np.mean(np.square(np.asarray(slots) - first)))
  assert (np.diff(found) < 0).all() and found[-1] < 1e-3 < found[0]


def test_a_segment_of_padding_reaches_the_encoder_as_nothing_and_the_model_not_at_all():
  memory, slots, none = make(), draw(0, B, N, D), jnp.zeros((B, G), bool)
  one, other = (encode(memory, draw(seed, B, G, D), slots, none)[0] for seed in (1, 2))
  np.testing.assert_array_equal(one, other)
  assert np.abs(one - normed(np.asarray(slots) + np.asarray(memory.encoder.bias[...]))).max() > 0.1
  state = start_from(memory, slots)
  after = run(memory, jnp.full((B, G, D), jnp.nan), state, valid=none)[1]
  jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_reset_row_does_not_see_the_slots_that_came_in():
  memory, x = make(), draw(1, B, 2 * G, D)
  reset = jnp.zeros((B, 2 * G), bool).at[0, 0].set(True)
  found = [run(memory, x, start_from(memory, draw(s, B, N, D)), reset=reset) for s in (2, 3)]
  (y, state), (other_y, other) = found
  np.testing.assert_array_equal(y[0], other_y[0])
  np.testing.assert_array_equal(state.border.memory[0], other.border.memory[0])
  assert (y[1, G:] != other_y[1, G:]).any() and (
    state.border.memory[1] != other.border.memory[1]
  ).any()


def plain_bart(params, x):
  """A post-norm encoder of tokens alone, `[B, G, D]`, with the tokens' weights."""
  p = {
    name.removeprefix(LAYERS + "tokens/"): np.asarray(a, np.float64) for name, a in params.items()
  }
  split_heads = lambda a: a.reshape(B, G, 2, D // 2).swapaxes(1, 2)  # noqa: E731

  def norm(a, name, i):
    return normed(a) * p[f"{name}/scale"][i] + p[f"{name}/bias"][i]

  h = normed(np.asarray(x) + p["encoder/places"])
  for i in range(2):
    linear = lambda a, name, i=i: a @ p[f"{name}/kernel"][i] + p[f"{name}/bias"][i]  # noqa: E731
    q, k, v = (split_heads(linear(h, name)) for name in ("query", "key", "value"))
    weights = special.softmax(q @ k.swapaxes(-1, -2) / (D // 2) ** 0.5, axis=-1)
    h = norm(h + linear((weights @ v).swapaxes(1, 2).reshape(h.shape), "out"), "attended", i)
    inner = linear(h, "up")
    inner = inner * special.ndtr(inner)
    h = norm(h + linear(inner, "down"), "fed", i)
  return h


def test_tokens_that_no_slot_reaches_are_plain_bart():
  params, rest = split(make())
  x, slots = draw(1, B, G, D), draw(0, B, N, D)
  open_model = encode(join(params, rest), x, slots)[1]
  # A feature of each head that is 1 in all queries and -1e5 in the slots' keys: weights are 0.
  marks = jnp.tile(jnp.array([1.0, 0.0]), (2, D // 2))
  for name, mark in {"tokens/query": marks, "slots/key": -1e5 * marks}.items():
    kernel = params[f"{LAYERS}{name}/kernel"]
    params[f"{LAYERS}{name}/kernel"] = kernel * (1 - marks[:, None, :])
    params[f"{LAYERS}{name}/bias"] = mark
  got = encode(join(params, rest), x, slots)[1]
  close(got, plain_bart(params, x))
  assert np.abs(got - open_model).max() > 0.01


def test_within_a_layer_a_slot_sees_itself_and_tokens_and_tokens_see_all():
  layer = TwoStreams(D, heads=2, hidden=6, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
  m, h, valid = draw(0, 1, N, D), draw(1, 1, G, D), jnp.array([[True, True, False]])
  plain = lambda x, i: x  # noqa: E731
  jacobian = jit(jax.jacobian(lambda m, h: layer(m, h, valid, plain), argnums=(0, 1)))(m, h)
  (mm, mh), (hm, hh) = (
    [np.abs(a[0, :, :, 0]).max(axis=(1, 3)) > 1e-5 for a in row] for row in jacobian
  )
  np.testing.assert_array_equal(mm, np.eye(N, dtype=bool))
  np.testing.assert_array_equal(mh, np.broadcast_to(np.asarray(valid), (N, G)))
  assert hm.all()
  np.testing.assert_array_equal(hh, np.asarray(valid) | np.eye(G, dtype=bool))


def test_slots_differ_from_the_start_and_stay_apart():
  memory = make(slots=4)
  slots = run(memory, draw(1, B, 4 * G, D), memory.init_state(B))[1].border.memory
  apart = np.abs(slots[:, :, None] - slots[:, None]).max(axis=-1)
  assert (apart + np.eye(4)).min() > 0.01
  for name, a in split(memory)[0].items():  # the other way they could not
    if name == "encoder/bias":
      memory.encoder.bias[...] = jnp.broadcast_to(a[:1], a.shape)
  slots = run(memory, draw(1, B, 4 * G, D), memory.init_state(B))[1].border.memory
  close(slots, jnp.broadcast_to(slots[:, :1], slots.shape))


def test_a_decoder_reads_slots_and_tokens_of_the_last_segment():
  memory, x = make(), draw(0, B, 3 * G, D)
  y, state = run(memory, x, memory.init_state(B))
  slots, h = jnp.zeros((B, N, D)), jnp.zeros((B, G, D))
  for t, (part, got) in enumerate(zip(jnp.split(x, 3, 1), jnp.split(y, 3, 1), strict=True)):
    both = {"encoded": jnp.concatenate([slots, h], axis=1)}
    context = Context(shared=both | {"encoded_seen": jnp.full((B, N + G), t > 0)})
    close(got, run(memory.decoder, part, memory.decoder.init_state(B), context=context)[0])
    slots, h = encode(memory, part, slots)
  close((state.border.memory, state.border.encoded.values), (slots, h))


def test_places_count_valid_tokens():
  memory, slots = make(), draw(0, B, N, D)
  valid = jnp.array([[True, False, True]] * B)
  x = draw(1, B, G, D)
  gap = encode(memory, x, slots, valid)
  close_up = encode(memory, x[:, jnp.array([0, 2, 1])], slots, valid[:, jnp.array([0, 2, 1])])
  close((gap[0], gap[1][:, 2]), (close_up[0], close_up[1][:, 1]))


@pytest.mark.slow  # without dropout the golden gradients show it
def test_replay_gives_the_gradient_of_the_whole_sequence_under_dropout():
  def gradient(remat):
    small = {"decoder": functools.partial(Stack, pattern=[read]), "layers": 1}
    trainable, rest = split(make(**small, remat=remat, dropout=0.5))

    def loss(trainable):
      memory, context = join(trainable, rest), Context(key=jax.random.key(3))
      y, state = memory(draw(1, B, 4 * G, D), memory.init_state(B), context=context)
      return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(state.border.memory))

    return jit(jax.grad(loss))(trainable)

  expected = gradient(None)
  for name, got in gradient("full").items():
    want = expected[name]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
  assert np.abs(expected["encoder/bias"]).max() > 1e-6


def test_dropout_follows_the_key():
  x, slots, keys = draw(1, B, G, D), draw(0, B, N, D), jax.random.split(jax.random.key(0))
  memory = make(dropout=0.3)
  found = [encode(memory, x, slots, None, Context(key=key)) for key in (keys[0], keys[0], keys[1])]
  jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
  assert (found[0][0] != found[2][0]).any() and (found[0][1] != found[2][1]).any()
  jax.tree.map(np.testing.assert_array_equal, encode(memory, x, slots), encode(make(), x, slots))


def test_slots_can_start_as_the_tokens_stream():
  params, _ = split(make())
  copied = slots_as_tokens(params)
  assert set(copied) == set(params)
  assert sum(LAYERS + "slots/" in name for name in params) == 16
  for name, a in copied.items():
    np.testing.assert_array_equal(a, params[name.replace(LAYERS + "slots", LAYERS + "tokens")])


def test_it_measures_gates_and_what_the_streams_see_of_each_other():
  @jit
  def means(memory, x):
    with channel.collect(measure=True) as frame:
      memory(x, memory.init_state(B))
    return {
      path: {n: m.value for n, m in by.items()} for path, by in measured(frame.emitted).items()
    }

  found = means(shut(make()), draw(1, B, 2 * G, D))
  assert found[""]["gate"] == 0
  for layer in ("0", "1"):
    assert 0.05 < found[layer]["kept"] < 0.6 and 0.2 < found[layer]["read_share"] < 0.7


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"decoder": functools.partial(Stack, pattern=[attention])}, r"SlotRead\(source='encoded'\)"),
    (
      {"decoder": functools.partial(Stack, pattern=[functools.partial(attention, span="s"), read])},
      "the decoder.*not causal",
    ),
    ({"heads": 3}, "heads=3 does not divide dim=4"),
    ({"layers": 0}, "layers=0"),
    ({"slots": 0}, "slots=0"),
    ({"dropout": 1.0}, "dropout=1.0"),
    ({"remat": "half"}, "remat='half'"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
