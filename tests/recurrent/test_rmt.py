"""The Recurrent Memory Transformer against its paper, its known look-alikes, and its contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Context, Memory, as_state, detach, join, leaf, replace, select, split
from memjax.core.module import variable_axes
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.testing.case import jit
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

B, D, G, M = 2, 8, 4, 2
OWN = G + 2 * M
attention = functools.partial(Attention, heads=2, span="span", capacity=OWN)
stack = functools.partial(Stack, pattern=[attention], repeats=2)


def make(**options):
  options = {"body": attention, "segment": G, "memory": M, "rngs": nnx.Rngs(0), **options}
  return RecurrentMemoryTransformer(D, **options)


def inputs(segments, seed=1):
  return jax.random.normal(jax.random.key(seed), (B, segments * G, D))


@jit
def run(memory, x, state, **flags):
  return memory(x, state, **flags)


@jit
def start(memory):
  return memory.init_state(B)


def close(a, b, tolerance=2e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), a, b)


def pieces(memory, x, state, cuts, **flags):
  """Outputs and last state of calls on x cut at `cuts`."""
  ys = []
  for start, end in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
    part = {name: a[:, start:end] for name, a in flags.items()}
    y, state = run(memory, x[:, start:end], state, **part)
    ys.append(y)
  return jnp.concatenate(ys, axis=1), state


@as_state
class Total:
  total: jax.Array = leaf("embed")


class Sees(Memory):
  """Sums the tokens that each token sees: shows the layout and the mask of its wrapper."""

  def __init__(self, dim, *, span=None, tokens=None, rngs):
    self.span, self.tokens = span, tokens

  def init_state(self, batch):
    return Total(jnp.zeros((batch, D)))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))[None]
    if self.span is not None:
      span = context.tokens[self.span]
      both = span[:, :, None] == span[:, None, :]
      seen = seen | (both & (span != 0)[:, :, None])
    if self.tokens is not None:
      x = x + context.tokens[self.tokens]
    if valid is not None:
      x = jnp.where(valid[..., None], x, 0)
    seen = jnp.broadcast_to(seen, (x.shape[0], *seen.shape[1:])).astype(x.dtype)
    y = jnp.einsum("bij,bjd->bid", seen, x) + state.total[:, None]
    return y, Total(state.total + jnp.sum(x, axis=1))


# What the paper says.


def test_without_memory_tokens_it_is_the_body_on_isolated_segments():
  memory, x = make(memory=0), inputs(2)
  y, state = run(memory, x, start(memory))
  alone = [run(memory.body, s, memory.body.init_state(B), context=Context(tokens={
    "span": jnp.zeros((B, G), jnp.int32)}))[0] for s in jnp.split(x, 2, axis=1)]  # fmt: skip
  close(y, jnp.concatenate(alone, axis=1))
  assert state.memory.shape == (B, 0, D)
  assert set(split(memory)[0]) == {f"body/{name}" for name in split(memory.body)[0]}
  close(pieces(memory, x, start(memory), tuple(range(1, 2 * G)))[0], y)


@pytest.mark.parametrize("causal_memory", [False, True])
def test_layout_and_mask(causal_memory):
  inner = functools.partial(Sees, span=None if causal_memory else "span")
  memory, x = make(body=inner, causal_memory=causal_memory), inputs(2)
  y, state = memory(x, start(memory))
  mem = jnp.broadcast_to(memory.first[...], (B, M, D))
  for s in range(2):
    text = x[:, s * G : (s + 1) * G]
    read = jnp.sum(mem, axis=-2)
    expected = read[:, None] + jnp.cumsum(text, axis=1)
    close(y[:, s * G : (s + 1) * G], expected)
    write = (
      jnp.cumsum(mem, axis=-2) if causal_memory else jnp.broadcast_to(read[..., None, :], mem.shape)
    )
    mem = expected[:, -1:] + write
  close(state.memory, mem)


def test_text_changes_only_what_comes_after_it():
  memory, x, token = make(), inputs(3), G + 1
  assert memory.causal
  y, _ = run(memory, x, start(memory))
  other, _ = run(memory, x.at[:, token].add(1.0), start(memory))
  np.testing.assert_array_equal(y[:, :token], other[:, :token])
  assert np.all(np.abs(y[:, token:] - other[:, token:]).max(axis=-1) > 1e-6)
  _, one = run(memory, x[:, : 2 * G], start(memory))
  _, two = run(memory, x[:, : 2 * G].at[:, token].add(1.0), start(memory))
  assert np.all(np.abs(one.memory - two.memory).max(axis=-1) > 1e-6)


def test_memory_reaches_every_token_of_its_segment():
  memory, x = make(), inputs(1)
  state = start(memory)
  y, _ = run(memory, x, state)
  moved = type(state)(state.memory.at[:, 0].add(1.0), state.body, state.filled)
  other, _ = run(memory, x, moved)
  assert np.all(np.abs(y - other).max(axis=-1) > 1e-6)


@pytest.mark.parametrize(("segments", "depth", "reached"), [
  (2, 1, [False, True]),
  (2, 2, [True, True]),
  (3, 2, [False, True, True]),
  (3, 3, [True, True, True]),
])  # fmt: skip
def test_gradients_cross_as_many_borders_as_detach_allows(segments, depth, reached):
  memory = make()

  @jax.grad
  def gradient(x):
    state = memory.init_state(B)
    for s, part in enumerate(jnp.split(x, segments, axis=1)):
      if 1 <= s <= segments - depth:
        state = detach(state)
      y, state = memory(part, state)
    return jnp.sum(jnp.sin(y))

  parts = np.asarray(jit(gradient)(inputs(segments))).reshape(B, segments, G, D)
  assert [bool(np.any(parts[:, s])) for s in range(segments)] == reached


def test_a_row_without_leading_segments_ends_like_the_shorter_row():
  memory, x = make(), inputs(3)
  valid = jnp.ones((B, 3 * G), bool).at[0, : 2 * G].set(False)
  noise = x.at[0, : 2 * G].set(jnp.nan)
  y, state = run(memory, noise, start(memory), valid=valid)
  alone, last = run(memory, x[:, 2 * G :], start(memory))
  assert np.all(np.isfinite(y))
  close(y[0, 2 * G :], alone[0])
  close(state.memory[0], last.memory[0])


def test_the_first_memory_is_learned_row_by_row():
  memory = make(memory=64)
  rows = np.asarray(memory.first[...])
  assert len(np.unique(rows[:, 0])) == 64
  assert rows.std() == pytest.approx(D**-0.5, rel=0.1)
  assert np.asarray(make(memory=64, init_std=2.0).first[...]).std() == pytest.approx(2, rel=0.1)
  assert variable_axes(memory)["first"] == ("memory", "embed")
  trainable, rest = split(make())

  def loss(trainable):
    memory = join(trainable, rest)
    return jnp.sum(jnp.sin(memory(inputs(1), memory.init_state(B))[0]))

  gradient = jit(jax.grad(loss))(trainable)["first"]
  assert np.all(np.abs(gradient).max(axis=1) > 1e-6)


# Open segments.


@pytest.mark.parametrize("cuts", [tuple(range(1, 12)), (3, 4, 8, 10), (4, 5, 8)])
@pytest.mark.parametrize("causal_memory", [False, True])
def test_any_way_to_cut_the_tokens_gives_the_same(cuts, causal_memory):
  memory, x = make(causal_memory=causal_memory), inputs(3)
  if causal_memory:
    memory = replace(memory, span=None)
  y, state = run(memory, x, start(memory))
  parts, last = pieces(memory, x, start(memory), cuts)
  close(parts, y)
  close(last, state)


def test_rows_fill_their_segments_at_different_times():
  memory, x = make(), inputs(2)
  valid = jnp.array([[1, 0, 1, 1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 0, 0, 1, 1, 1]], bool)
  order = jnp.clip(jnp.cumsum(valid, axis=1) - 1, 0)
  spread = jnp.where(valid[..., None], jnp.take_along_axis(x, order[..., None], axis=1), jnp.nan)
  y, state = pieces(memory, spread, start(memory), tuple(range(1, 10)), valid=valid)
  for row in range(B):
    count = int(valid[row].sum())
    alone, last = pieces(memory, x[:, :count], start(memory), (G, *range(G + 1, count)))
    close(y[row][valid[row]], alone[row])
    close((state.memory[row], state.filled[row]), (last.memory[row], last.filled[row]))
  assert np.all(np.isfinite(y))


def test_a_row_that_pauses_keeps_its_open_segment():
  memory, x = make(), inputs(2)
  _, open_state = run(memory, x[:, :3], start(memory))
  pause = jnp.ones((B, G), bool).at[0].set(False)
  mixed = select(jnp.array([True, False]), open_state, start(memory))
  y, state = run(memory, x[:, G:], mixed, valid=pause)
  close((state.memory[0], state.filled[0]), (open_state.memory[0], open_state.filled[0]))
  assert np.all(np.isfinite(y))
  after, _ = run(memory, x[:, 3:4], state)
  close(after[0], run(memory, x[:, :G], start(memory))[0][0, 3:])


def test_a_reset_between_calls_leaves_the_open_segment():
  memory, x = make(), inputs(2)
  _, state = run(memory, x[:, :3], start(memory))
  for part in (x[:, G : G + 1], x[:, G:]):  # into an open segment, into whole ones
    reset = jnp.zeros(part.shape[:2], bool).at[:, 0].set(True)
    y, after = run(memory, part, state, reset=reset)
    fresh, last = run(memory, part, start(memory))
    close(y, fresh)
    close((after.memory, after.filled), (last.memory, last.filled))


def test_segments_under_dropout_differ_and_repeat():
  memory = make(body=functools.partial(Stack, pattern=[attention], dropout=0.5))
  x = jnp.tile(inputs(1), (1, 2, 1))
  context = Context(key=jax.random.key(3))
  y, _ = run(memory, x, start(memory), context=context)
  again, _ = run(memory, x, start(memory), context=context)
  np.testing.assert_array_equal(y, again)
  assert not np.array_equal(
    np.asarray(y[:, :G] == 0), np.asarray(y[:, G:] == 0)
  ) or not np.allclose(y[:, :G], y[:, G:])


# What it makes of the wrong use.


def nan_rows(y):
  return np.isnan(np.asarray(y)).all(axis=(1, 2)).tolist()


def test_a_reset_inside_a_segment_is_nan_from_there_until_the_next_at_a_border():
  memory, x = make(), inputs(4)
  reset = jnp.zeros((B, 4 * G), bool).at[0, G + 1].set(True).at[0, 3 * G].set(True)
  y, state = run(memory, x, start(memory), reset=reset)
  clean, _ = run(memory, x, start(memory))
  fresh, last = run(memory, x[:, 3 * G :], start(memory))
  close(y[1], clean[1])
  close(y[0, : G + 1], clean[0, : G + 1])
  assert np.all(np.isnan(y[0, G + 1 : 3 * G]))
  close(y[0, 3 * G :], fresh[0])
  close(state.memory[0], last.memory[0])
  _, broken = run(memory, x[:, : 3 * G], start(memory), reset=reset[:, : 3 * G])
  for part in (x[:, :1], x[:, :G]):
    assert nan_rows(run(memory, part, broken)[0]) == [True, False]


def test_a_reset_behind_a_token_of_a_short_call_is_nan():
  memory, x = make(), inputs(1)
  reset = jnp.zeros((B, 2), bool).at[0, 1].set(True)
  y, state = run(memory, x[:, :2], start(memory), reset=reset)
  assert np.all(np.isnan(y[0, 1])) and np.all(np.isfinite(y[0, 0])) and np.all(np.isfinite(y[1]))
  assert nan_rows(run(memory, x[:, :1], state)[0]) == [True, False]


def test_whole_segments_for_a_row_with_an_open_one_are_nan():
  memory, x = make(), inputs(2)
  _, half = run(memory, x[:, :2], start(memory))
  mixed = select(jnp.array([True, False]), half, start(memory))
  y, state = run(memory, x, mixed)
  assert nan_rows(y) == [True, False]
  assert nan_rows(run(memory, x[:, :1], state)[0]) == [True, False]


def test_tokens_past_the_end_of_a_segment_are_nan():
  memory, x = make(), inputs(1)
  _, state = run(memory, x[:, :3], start(memory))
  valid = jnp.ones((B, 3), bool).at[1, 1:].set(False)
  y, state = run(memory, x[:, :3], state, valid=valid)
  assert np.all(np.isnan(y[0, 1:])) and np.all(np.isfinite(y[0, 0])) and np.all(np.isfinite(y[1]))
  assert state.filled.tolist() == [-1, 0]


@pytest.mark.parametrize("length", [G + 1, 3 * G - 1])
def test_other_lengths_raise(length):
  memory = make()
  with pytest.raises(ValueError, match=rf"T={length} tokens.*segment={G}"):
    memory(jnp.zeros((B, length, D)), start(memory))


def test_a_body_that_cannot_carry_raises():
  for capacity in (0, OWN - 1):
    memory = replace(make(), capacity=capacity)
    run(memory, inputs(1), start(memory)) if capacity == 0 else None
    with pytest.raises(ValueError, match=rf"capacity={capacity}.*core.replace.*capacity={OWN}"):
      memory(inputs(1)[:, :1], start(memory))


def test_bad_arguments_raise():
  with pytest.raises(ValueError, match="reads spans.*causal_memory=True"):
    make(body=functools.partial(Stack, pattern=[functools.partial(Attention, heads=2)]))
  with pytest.raises(ValueError, match=r"4 \+ 2 \* 3 = 10.*granularity 6; segment=6"):
    inner = functools.partial(RecurrentMemoryTransformer, body=attention, segment=6, memory=1)
    make(body=inner, memory=3)
  with pytest.raises(ValueError, match="segment=0"):
    make(segment=0)
  with pytest.raises(ValueError, match="memory=-1"):
    make(memory=-1)
  with pytest.raises(ValueError, match="remat='dots'"):
    make(remat="dots")


# What it passes on to the body.


def test_token_entries_are_cut_with_the_text_and_zero_at_memory_tokens():
  inner = functools.partial(Sees, tokens="features")
  memory, x = make(body=inner, causal_memory=True), inputs(2)
  features = inputs(2, seed=5)
  y, state = memory(x, start(memory), context=Context(tokens={"features": features}))
  close((y, state), memory(x + features, start(memory), context=Context(tokens={
    "features": jnp.zeros_like(features)})))  # fmt: skip
  half = memory(x[:, :2], start(memory), context=Context(tokens={"features": features[:, :2]}))
  close(half[0], y[:, :2])


def test_spans_of_the_text_stay_apart_from_the_blocks():
  memory, x = make(body=functools.partial(Sees, span="span")), inputs(1)
  span = jnp.array([[0, 1, 1, 0], [2, 2, 2, 0]], jnp.int32)
  y, _ = memory(x, start(memory), context=Context(tokens={"span": span}))
  read, text = jnp.sum(memory.first[...], axis=0, keepdims=True), jnp.cumsum(x, axis=1)
  close(y[0], read + jnp.stack([text[0, 0], text[0, 2], text[0, 2], text[0, 3]]))
  close(y[1], read + jnp.stack([text[1, 2], text[1, 2], text[1, 2], text[1, 3]]))


def test_a_wrapped_body_in_a_wrapper():
  inner = functools.partial(RecurrentMemoryTransformer, body=attention, segment=G, memory=1)
  memory = make(body=inner, segment=2 * G, memory=0)
  x = inputs(4)
  y, state = run(memory, x, start(memory))
  assert memory.granularity == 2 * G and memory.causal
  close(pieces(memory, x, start(memory), (2 * G, 3 * G, *range(3 * G + 1, 4 * G)))[0], y)


def test_a_language_model_decodes_as_it_trains():
  model = LanguageModel(11, D, body=functools.partial(
    RecurrentMemoryTransformer, body=stack, segment=G, memory=M), rngs=nnx.Rngs(0))  # fmt: skip
  ids = jax.random.randint(jax.random.key(0), (B, 2 * G), 0, 11)
  logits, state = run(model, ids, start(model))
  parts, last = pieces(model, ids, start(model), tuple(range(1, 2 * G)))
  close(parts, logits)
  close(last, state)


def test_bfloat16_in_bfloat16_out_and_memory_float32():
  memory, x = make(), inputs(2).astype(jnp.bfloat16)
  for part in (x, x[:, :1]):
    y, state = jax.eval_shape(memory, part, start(memory))
    assert y.dtype == jnp.bfloat16 and state.memory.dtype == jnp.float32


# What back-propagation keeps.


def test_rematerialised_segments_keep_their_borders_only():
  def gradient(remat, segments):
    trainable, rest = split(make(body=functools.partial(attention, capacity=0), remat=remat))

    def loss(trainable, x):
      memory = join(trainable, rest)
      return jnp.sum(jnp.sin(memory(x, memory.init_state(B))[0]))

    x = inputs(segments)
    compiled = jax.jit(jax.grad(loss)).lower(trainable, x).compile()
    return compiled(trainable, x), compiled.memory_analysis().temp_size_in_bytes

  (_, two), (again, four), (_, eight) = (gradient("full", n) for n in (2, 4, 8))
  plain, kept = gradient(None, 4)
  _, kept_eight = gradient(None, 8)
  close(plain, again)
  assert eight - four == pytest.approx(2 * (four - two), rel=0.1)  # linear in the segments
  # A segment more: its border, and what goes in and out of it, whatever the body holds.
  crossing = 4 * B * (M * D + 1) + 2 * 4 * B * G * D
  assert eight - four <= 4 * 1.1 * crossing
  assert eight - four < 0.25 * (kept_eight - kept)


# It remembers.


def copy_error(tokens, depth, steps=2500):
  """Error of copying 8 digits of 8 kinds from segment 1 to segment 3, learned with BPTT depth."""
  size, kinds, width = 8, 8, 128
  layers = [functools.partial(Attention, heads=4, span="span"), FeedForward]
  model = LanguageModel(kinds + 1, width, rngs=nnx.Rngs(0), body=functools.partial(
    RecurrentMemoryTransformer, segment=size, memory=tokens,
    body=functools.partial(Stack, pattern=layers, repeats=4)))  # fmt: skip
  trainable, rest = split(model)
  rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 50, steps)
  optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

  def loss(trainable, digits):
    model = join(trainable, rest)
    blank = jnp.full_like(digits, kinds)
    answer = jnp.concatenate([blank[:, :1], digits[:, :-1]], axis=1)  # teacher forcing
    state = model.init_state(digits.shape[0])
    for part in (digits, blank, answer):
      logits, state = model(part, state if depth > 1 else detach(state))
    wrong = jnp.mean(jnp.argmax(logits, axis=-1) != digits)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, digits)), wrong

  @jax.jit
  def train(trainable, opt_state, key):
    digits = jax.random.randint(key, (32, size), 0, kinds)
    (_, wrong), gradient = jax.value_and_grad(loss, has_aux=True)(trainable, digits)
    updates, opt_state = optimiser.update(gradient, opt_state, trainable)
    return optax.apply_updates(trainable, updates), opt_state, wrong

  opt_state, wrong = optimiser.init(trainable), []
  for key in jax.random.split(jax.random.key(0), steps):
    trainable, opt_state, error = train(trainable, opt_state, key)
    wrong.append(error)
  return float(np.mean(wrong[-20:]))


@pytest.mark.slow
def test_copies_over_two_borders():
  assert copy_error(tokens=8, depth=3) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "depth"), [(0, 3), (8, 1)])
def test_without_memory_or_gradient_the_copy_stays_at_chance(tokens, depth):
  """A longer training does not help: 0.87 after 2000 steps."""
  assert copy_error(tokens, depth, steps=1000) > 0.8
