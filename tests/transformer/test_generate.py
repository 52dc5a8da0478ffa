"""Generation gives the tokens of recomputing everything from the start at each step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Memory, as_state, checks, leaf, replace, scan
from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import NeuralTuringMachine
from memjax.transformer import (
  Attention,
  FeedForward,
  LanguageModel,
  Stack,
  generate,
  prefill,
  with_room,
)
from memjax.transformer.decode import pick_from
from memjax.transformer.generate import _generate

VOCAB, DIM, STEPS, LONGEST = 11, 8, 6, 16

attention = functools.partial(Attention, heads=2, kv_heads=1, head_dim=4)
window = functools.partial(attention, window=3)
hidden = functools.partial(FeedForward, hidden=8)
keys = functools.partial(ProductKeyMemory, keys=4, heads=1, top_k=2, query_dim=4)
pooled = functools.partial(
  MemoryPlus, keys=4, heads=1, top_k=2, query_dim=4, value_dim=4, values="pool"
)
ntm = functools.partial(NeuralTuringMachine, slots=4, width=4, hidden=8)
pool = functools.partial(value_pool, 16, 4)


def stack(*pattern, repeats=1):
  return functools.partial(Stack, pattern=pattern, repeats=repeats)


def rmt(**options):
  body = stack(functools.partial(attention, span="span", **options), hidden)
  return functools.partial(RecurrentMemoryTransformer, body=body, segment=4, memory=2)


MODELS = {
  "attention": {"body": stack(attention, hidden, repeats=2)},
  "window": {"body": stack(attention, window)},
  "product-keys": {"body": stack(window, keys)},
  "memory-plus": {"body": stack(window, pooled), "shared": {"pool": pool}},
  "ntm": {"body": stack(window, ntm)},
  "rmt": {"body": rmt()},
  "rmt-window": {"body": rmt(window=3)},
}


def models(*quick):
  """All models, those not named under `-m slow`."""
  slow = pytest.mark.slow
  return [pytest.param(name, marks=() if name in quick else slow) for name in MODELS]


def build(seed=0, vocab=VOCAB, **options):
  model = LanguageModel(vocab, DIM, **options, rngs=nnx.Rngs(seed))
  return jax.tree.map(lambda a: 2 * a, model)  # far from uniform, so that a wrong state shows


@functools.cache
def model_of(name):
  return build(**MODELS[name])


PROMPTS = jnp.asarray([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 0, 0], [7, 0, 0, 0, 0, 0, 0]])
COUNTS = (7, 5, 1)
OWN = [PROMPTS[row, :count].tolist() for row, count in enumerate(COUNTS)]
RIGHT = jnp.arange(7)[None] < jnp.asarray(COUNTS)[:, None]
MOVED = jnp.asarray([[9] * (7 - len(own)) + own for own in OWN])  # padding on the left


@functools.cache
def recompute(name):
  """`ids -> log-probabilities [vocab]` of the next id, from one fresh call on all of them."""
  model = model_of(name)

  @jax.jit
  def run(ids, valid):
    return jax.nn.log_softmax(model(ids, model.init_state(1), valid=valid)[0][0])

  @functools.cache
  def next_id(tokens):  # one shape, so one compile: what comes after the tokens is padding
    ids = np.zeros((1, LONGEST), np.int32)
    ids[0, : len(tokens)] = tokens
    return np.asarray(run(ids, np.arange(LONGEST)[None] < len(tokens))[len(tokens) - 1])

  return lambda tokens: next_id(tuple(tokens))


def agree(out, tokens, log_probs):
  assert out.tokens.tolist() == tokens
  np.testing.assert_allclose(out.log_probs, log_probs, atol=5e-4)


@pytest.mark.parametrize("name", models("attention", "window", "product-keys", "ntm", "rmt"))
def test_greedy(name):
  tokens = [list(own) for own in OWN]
  log_probs = [[], [], []]
  for _ in range(STEPS):
    for row in range(3):
      p = recompute(name)(tokens[row])
      tokens[row].append(int(np.argmax(p)))
      log_probs[row].append(p[tokens[row][-1]])
  expected = [all_[len(own) :] for all_, own in zip(tokens, OWN, strict=True)]
  out = generate(model_of(name), PROMPTS, valid=RIGHT, max_new_tokens=STEPS)
  agree(out, expected, log_probs)
  assert out.lengths.tolist() == [STEPS] * 3
  left = generate(model_of(name), MOVED, valid=RIGHT[:, ::-1], max_new_tokens=STEPS)
  agree(left, expected, log_probs)
  assert len({tuple(row) for row in expected}) == 3  # or the test would see nothing


@pytest.mark.parametrize("name", models("window"))
def test_sampling(name):
  key, cuts = jax.random.key(3), {"temperature": 1.5, "top_k": 6, "top_p": 0.9}
  tokens, log_probs = [list(own) for own in OWN], []
  for i in range(STEPS):
    p = np.stack([recompute(name)(row) for row in tokens])
    chosen = pick_from(jnp.asarray(p), jax.random.fold_in(key, i), **cuts)
    for row in range(3):
      tokens[row].append(int(chosen[row]))
    log_probs.append(p[np.arange(3), chosen])
  out = generate(model_of(name), PROMPTS, valid=RIGHT, max_new_tokens=STEPS, key=key, **cuts)
  expected = [all_[len(own) :] for all_, own in zip(tokens, OWN, strict=True)]
  agree(out, expected, np.transpose(log_probs))


def search(next_id, own, width, count, eos, penalty):
  """Beam search on lists: the best (tokens, log-probabilities)."""
  rank = lambda h: sum(h[1]) / len(h[1]) ** penalty  # noqa: E731
  pool = [([], [])]
  for _ in range(count):
    grown = []
    for tokens, log_probs in pool:
      if eos in tokens:
        grown.append((tokens, log_probs))
      else:
        p = next_id(own + tokens)
        grown += [([*tokens, v], [*log_probs, float(p[v])]) for v in range(len(p))]
    pool = sorted(grown, key=rank, reverse=True)[:width]
  return max(pool, key=rank)


@pytest.mark.parametrize("name", models("window", "rmt"))
def test_beams(name):
  eos, penalty = 4, 0.7
  out = generate(
    model_of(name), PROMPTS, valid=RIGHT, max_new_tokens=STEPS, beams=3, eos=eos,
    length_penalty=penalty,
  )  # fmt: skip
  for row, own in enumerate(OWN):
    tokens, log_probs = search(recompute(name), own, 3, STEPS, eos, penalty)
    length = int(out.lengths[row])
    assert out.tokens[row, :length].tolist() == tokens
    np.testing.assert_allclose(out.log_probs[row, :length], log_probs, atol=5e-4)
    assert out.tokens[row, length:].tolist() == [eos] * (STEPS - length)
    assert not out.log_probs[row, length:].any()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_search_everything(penalty):
  vocab, count, eos = 3, 3, 2
  model = build(1, vocab, body=stack(window))
  prompt = jnp.asarray([[0, 1], [1, 1]])
  out = generate(
    model, prompt, max_new_tokens=count, beams=vocab**count, eos=eos, length_penalty=penalty
  )
  every = np.asarray(list(itertools.product(range(vocab), repeat=count)))
  for row in range(2):
    ids = jnp.concatenate([jnp.tile(prompt[row], (len(every), 1)), every], axis=1)
    logits, _ = jax.jit(lambda m, ids: m(ids, m.init_state(len(ids))))(model, ids)
    p = np.asarray(jax.nn.log_softmax(logits))[:, 1:-1]
    p = np.take_along_axis(p, every[..., None], axis=2)[..., 0]
    ended = np.cumsum(every == eos, axis=1) - (every == eos) > 0
    lengths = np.sum(~ended, axis=1)
    score = np.sum(np.where(ended, 0, p), axis=1) / lengths**penalty
    best = np.argmax(score)
    assert out.lengths[row] == lengths[best]
    assert out.tokens[row, : lengths[best]].tolist() == every[best, : lengths[best]].tolist()
    total = float(jnp.sum(out.log_probs[row])) / lengths[best] ** penalty
    assert total == pytest.approx(score[best], abs=1e-4)


@pytest.mark.parametrize("name", ["window", "rmt"])
def test_rows_end_at_different_lengths(name):
  model = model_of(name)
  free = generate(model, PROMPTS, valid=RIGHT, max_new_tokens=STEPS)
  eos = int(free.tokens[0, 2])
  out = generate(model, PROMPTS, valid=RIGHT, max_new_tokens=STEPS, eos=eos)
  lengths = []
  for row in free.tokens.tolist():
    lengths.append(row.index(eos) + 1 if eos in row else STEPS)
  assert out.lengths.tolist() == lengths
  assert len(set(lengths)) > 1
  for row, length in enumerate(lengths):
    assert out.tokens[row].tolist() == free.tokens[row, :length].tolist() + [eos] * (STEPS - length)
    assert not out.log_probs[row, length:].any()


def test_rows_go_on_from_their_state():
  """What follows a row that ended early is what follows its own tokens, not the padding."""
  name = "window"
  model = replace(model_of(name), capacity=LONGEST)
  first = generate(model, PROMPTS[:, :2], max_new_tokens=4, eos=4)
  assert len(set(first.lengths.tolist())) > 1
  more = jnp.asarray([[2, 6], [0, 3], [8, 8]])
  valid = jnp.asarray([[True, True], [False, True], [True, True]])
  out = generate(model, more, valid=valid, max_new_tokens=3, state=first.state)
  for row in range(3):
    tokens = PROMPTS[row, :2].tolist() + first.tokens[row, : first.lengths[row]].tolist()
    tokens += more[row][valid[row]].tolist()
    for token in out.tokens[row].tolist():
      assert token == np.argmax(recompute(name)(tokens))
      tokens.append(token)


def test_segments_go_on_from_their_state():
  """A row's open segment may stand anywhere, so its prompt is fed token by token."""
  name = "rmt"
  model = replace(model_of(name), capacity=8)
  first = generate(model, PROMPTS, valid=RIGHT, max_new_tokens=2)
  more = jnp.asarray([[2, 6, 1, 0, 3]] * 3)
  out = generate(model, more, max_new_tokens=2, state=first.state)
  for row in range(3):
    tokens = OWN[row] + first.tokens[row].tolist() + more[row].tolist()
    for token in out.tokens[row].tolist():
      assert token == np.argmax(recompute(name)(tokens))
      tokens.append(token)


@as_state
class _Sum:
  total: jax.Array = leaf("embed")
  open: jax.Array = leaf("embed")
  filled: jax.Array = leaf()


class _Segments(Memory):
  """The sum of the closed segments: closed by their last token, or by the end of a whole call."""

  def __init__(self, dim, *, segment, rngs):
    self.dim, self.granularity = dim, segment

  def init_state(self, batch):
    total, open_ = jnp.zeros((batch, self.dim)), jnp.zeros((batch, self.dim))
    return _Sum(total, open_, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    length, g = x.shape[1], self.granularity
    if length % g and length > g:
      raise ValueError(f"T={length}")
    whole = length % g == 0

    def step(inputs, state, context):
      x, t = inputs
      open_, filled = state.open + x, state.filled + 1
      return state.total, _close(_Sum(state.total, open_, filled), filled == g)

    def segment(x, valid, state):
      at = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
      y, state = scan(step, (x, at), state, init=state, valid=valid)
      return y, _close(state, state.filled > 0) if whole else state

    outputs, count = [], length // g if whole else 1
    flags = [None] * count if valid is None else jnp.split(valid, count, axis=1)
    for part, flag in zip(jnp.split(x, count, axis=1), flags, strict=True):
      y, state = segment(part, flag, state)
      outputs.append(y)
    return jnp.concatenate(outputs, axis=1), state


def _close(state, due):
  due = due[:, None]
  total = jnp.where(due, jnp.tanh(state.total + state.open), state.total)
  return _Sum(total, jnp.where(due, 0.0, state.open), jnp.where(due[:, 0], 0, state.filled))


@pytest.mark.parametrize(
  "body",
  [
    stack(attention, functools.partial(_Segments, segment=4)),
    stack(functools.partial(_Segments, segment=2), functools.partial(_Segments, segment=3)),
  ],
  ids=["beside-attention", "two-and-three"],
)
def test_prefill_of_any_length_is_token_by_token(body):
  model = build(body=body)
  length = 14
  ids = jax.random.randint(jax.random.key(0), (length + 1, length), 0, VOCAB)
  valid = jax.random.permutation(  # row n has n tokens, with gaps anywhere
    jax.random.key(1), jnp.tri(length + 1, length, -1, dtype=bool), axis=1, independent=True
  )
  model = with_room(model, length)
  state = model.init_state(length + 1)
  expected, slow = jax.jit(prefill)(model, ids, state, valid=valid)
  for chunk in (None, 2 * model.granularity):
    fast = functools.partial(prefill, fresh=True, chunk=chunk)
    logits, quick = jax.jit(fast)(model, ids, state, valid=valid)
    np.testing.assert_allclose(logits[1:], expected[1:], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), quick, slow)


def test_prompts_in_chunks():
  model = model_of("window")
  whole = generate(model, PROMPTS, valid=RIGHT, max_new_tokens=STEPS)
  parts = generate(model, PROMPTS, valid=RIGHT, max_new_tokens=STEPS, chunk=3)
  agree(parts, whole.tokens.tolist(), whole.log_probs)


def test_a_row_without_tokens_gets_none():
  valid = RIGHT.at[1].set(False)
  out = generate(model_of("window"), PROMPTS, valid=valid, max_new_tokens=STEPS)
  assert out.lengths.tolist() == [STEPS, 0, STEPS]
  assert not out.tokens[1].any()


def test_compiled_once_and_inside_jit():
  model = build(body=stack(window))
  run = jax.jit(lambda model, prompts: generate(model, prompts, max_new_tokens=3).tokens)
  outside = generate(model, PROMPTS, max_new_tokens=3)
  np.testing.assert_array_equal(run(model, PROMPTS), outside.tokens)
  assert outside.tokens.dtype == PROMPTS.dtype
  before = _generate._cache_size()
  generate(model, PROMPTS[::-1], max_new_tokens=3)
  assert _generate._cache_size() == before


LOGITS = jnp.log(jnp.asarray([0.1, 0.3, 0.05, 0.3, 0.25]))


@pytest.mark.parametrize(
  ("cuts", "expected"),
  [
    ({}, [0.1, 0.3, 0.05, 0.3, 0.25]),
    ({"top_k": 1}, [0, 1, 0, 0, 0]),  # of equals the first
    ({"top_k": 3}, [0, 6 / 17, 0, 6 / 17, 5 / 17]),
    ({"top_p": 0.6}, [0, 1 / 2, 0, 1 / 2, 0]),
    ({"top_p": 0.61}, [0, 6 / 17, 0, 6 / 17, 5 / 17]),
    ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
    ({"top_p": 1.0}, [0.1, 0.3, 0.05, 0.3, 0.25]),
    ({"top_k": 2, "top_p": 0.7}, [0, 1 / 2, 0, 1 / 2, 0]),  # the cut of p is of what k left
    ({"temperature": 0.5}, np.square([0.1, 0.3, 0.05, 0.3, 0.25]) / 0.255),
  ],
)
def test_draws_have_the_stated_distribution(cuts, expected):
  rows = 20_000
  cuts = {"temperature": 1.0, "top_k": None, "top_p": None, **cuts}
  logits = jnp.broadcast_to(LOGITS[None], (rows, 5))
  drawn = np.bincount(pick_from(logits, jax.random.key(0), **cuts), minlength=5) / rows
  expected = np.asarray(expected)
  assert np.all(np.abs(drawn - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / rows))


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"temperature": 1.0}, "give a key"),
    ({"top_k": 3}, "give a temperature"),
    ({"temperature": 1.0, "key": 0, "top_k": 12}, "top_k=12 exceeds vocab=11"),
    ({"temperature": 1.0, "key": 0, "top_p": 0.0}, "top_p=0.0"),
    ({"temperature": 1.0, "key": 0, "beams": 2}, "temperature must be 0"),
    ({"beams": 0}, "beams=0"),
    ({"eos": 11}, "eos=11 is not an id"),
    ({"chunk": 6}, "chunk=6 is not a multiple of the granularity 4"),
    ({"prompts": PROMPTS[0]}, "prompts is int32\\[7\\]"),
    ({"prompts": PROMPTS + 3}, "prompts hold ids 3 to 12; vocab=11"),
    ({"valid": RIGHT[:2]}, "valid has shape"),
    ({"context": Context(key=1)}, "shared arrays only"),
    ({"state": ()}, "capacity=0 and carries nothing"),
  ],
)
def test_bad_input(options, words):
  options = {"prompts": PROMPTS, "max_new_tokens": 2, **options}
  with pytest.raises(ValueError, match=words):
    generate(model_of("rmt"), options.pop("prompts"), **options)


def test_room_is_checked_beforehand():
  model = replace(model_of("window"), capacity=10)
  first = generate(model, PROMPTS, max_new_tokens=3)
  with pytest.raises(ValueError, match="11 tokens .* after 0 in the state exceed .*capacity=10"):
    generate(model, PROMPTS, max_new_tokens=4)
  with pytest.raises(ValueError, match="after 10 in the state"):
    generate(model, PROMPTS, max_new_tokens=1, state=first.state)
  ring = build(body=stack(functools.partial(window, capacity=1)))  # never fills
  assert np.isfinite(generate(ring, PROMPTS, max_new_tokens=3).log_probs).all()
  with pytest.raises(ValueError, match="not causal"):
    spans = functools.partial(attention, span="span")
    generate(build(body=stack(spans)), PROMPTS, max_new_tokens=1)
