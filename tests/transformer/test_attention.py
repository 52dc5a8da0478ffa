"""Attention against explicit sums, and its cache against running everything at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless, replace, state_bytes
from memjax.transformer import Attention, Stack
from memjax.transformer.rotary import rotate

B, T, D = 2, 9, 8
LONGEST = 13


@functools.cache
def make(**options):
  return Attention(D, **{"heads": 4, "head_dim": 4, **options}, rngs=nnx.Rngs(0))


def data(seed=0, batch=B, length=T):
  return jax.random.normal(jax.random.key(seed), (batch, length, D))


@jax.jit
def call(layer, x, state, reset=None, valid=None, context=None):
  return layer(x, state, reset=reset, valid=valid, context=context)


def alone(layer, x):
  """A whole sequence in one call that carries nothing; of one shape, to be compiled once."""
  layer, length = replace(layer, capacity=0), x.shape[1]
  x = np.pad(np.asarray(x), ((0, B - x.shape[0]), (0, LONGEST - length), (0, 0)))
  return np.asarray(call(layer, x, Stateless())[0])[:, :length]


def turn(x, base=10_000.0):
  """Rotary positions by complex numbers: x `[T, H, K]` float64."""
  half = x.shape[-1] // 2
  rates = base ** (-np.arange(half) / half)
  spin = np.exp(1j * np.arange(len(x))[:, None] * rates)[:, None]
  y = (x[..., :half] + 1j * x[..., half:]) * spin
  return np.concatenate([y.real, y.imag], axis=-1)


def explicit(layer, x, sees):
  """y `[T, D]` of one row x `[T, D]`: for each token and head, the sum over what `sees(i, j)`."""
  k64 = lambda linear: np.asarray(linear.kernel[...], np.float64)  # noqa: E731
  x = np.asarray(x, np.float64)
  width = layer.head_dim
  q, k, v = ((x @ k64(m)).reshape(len(x), -1, width) for m in (layer.query, layer.key, layer.value))
  q, k = turn(q), turn(k)
  y = np.zeros_like(q)
  for h in range(layer.heads):
    group = h // (layer.heads // layer.kv_heads)
    for i in range(len(x)):
      seen = [j for j in range(len(x)) if sees(i, j)]
      weights = np.exp([q[i, h] @ k[j, group] / np.sqrt(width) for j in seen])
      y[i, h] = weights @ v[seen, group] / weights.sum()
  return y.reshape(len(x), -1) @ k64(layer.out)


def close(a, b, atol=1e-5):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=1e-5)


def same(a, b):
  jax.tree.map(close, a, b)


@pytest.mark.parametrize(("kv_heads", "window"), [(1, None), (2, 3), (4, 1)])
def test_explicit_sum(kv_heads, window):
  layer, x = make(kv_heads=kv_heads, window=window), data()
  reach = T if window is None else window
  for row in range(B):
    expected = explicit(layer, x[row], lambda i, j: j <= i < j + reach)
    close(alone(layer, x)[row], expected)


def test_rotary_products_depend_on_distance():
  q, k = data(1, 1, 1)[:, :, None], data(2, 1, 1)[:, :, None]
  at = lambda a, p: rotate(a, jnp.full((1, 1), p))  # noqa: E731
  score = lambda i, j: float(jnp.sum(at(q, i) * at(k, j)))  # noqa: E731
  assert score(3, 1) == pytest.approx(score(1003, 1001), abs=1e-3)
  assert abs(score(3, 1) - score(3, 2)) > 1e-2
  close(at(q, 0), q)


def test_no_positions():
  layer, x = make(rotary=None), data()
  swapped = x[:, jnp.asarray([1, 0, *range(2, T)])]
  close(alone(layer, x)[:, 2:], alone(layer, swapped)[:, 2:])
  assert not np.allclose(alone(make(), x)[:, 2:], alone(make(), swapped)[:, 2:], atol=1e-3)


def test_qk_norm_forgets_the_scale_of_queries_and_keys():
  layer, x = make(qk_norm=True), data()
  louder = jax.tree.map(lambda a: a, layer)
  for part in (louder.query, louder.key):
    part.kernel[...] *= 100
  close(alone(louder, x), alone(layer, x), atol=1e-4)


@pytest.mark.parametrize("window", [None, 3, 20])
def test_any_split_is_one_call(window):
  layer, x = make(window=window, kv_heads=2, capacity=T), data()
  expected, last = call(layer, x, layer.init_state(B))
  close(expected, alone(layer, x))
  for cuts in ((4, 8), (1, 5), tuple(range(1, T))):
    state, parts = layer.init_state(B), []
    for part in np.split(x, cuts, axis=1):
      y, state = call(layer, part, state)
      parts.append(y)
    close(np.concatenate(parts, axis=1), expected)
    same(state, last)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_flags_mean_what_they_say(window, seed):
  """Every segment's valid tokens, taken out and run alone, give what they give in place."""
  length, rng = LONGEST, np.random.default_rng(seed)
  reset, valid = rng.random((B, length)) < 0.25, rng.random((B, length)) < 0.7
  if seed == 0:
    reset[:, 0], valid[:, :3] = True, False  # padding on the left, in rows that held NaN
  layer = make(window=window, kv_heads=2, capacity=length)
  clean = np.asarray(data(seed, B, length))
  x = np.where(valid[..., None], clean, np.float32(np.nan))
  state = layer.init_state(B)
  if seed == 0:
    state = jax.tree.map(lambda a: jnp.full_like(a, 7 if a.dtype == jnp.int32 else jnp.nan), state)
  parts = []
  for cut in (slice(0, 6), slice(6, 12), slice(12, 13)):
    y, state = call(layer, x[:, cut], state, reset=reset[:, cut], valid=valid[:, cut])
    parts.append(y)
  y = np.concatenate(parts, axis=1)
  assert np.isfinite(y).all()
  for row in range(B):
    segment = np.cumsum(reset[row])
    for s in np.unique(segment):
      mine = np.flatnonzero((segment == s) & valid[row])
      if len(mine):
        close(y[row, mine], alone(layer, clean[row, mine][None])[0])
    assert state.length[row] == np.sum((segment == segment[-1]) & valid[row])


def test_reset_inside_a_call_on_a_row_of_nan():
  layer, x = make(capacity=T), data()
  _, state = call(layer, x[:, :4], layer.init_state(B))
  state = jax.tree.map(lambda a: a.at[0].set(jnp.nan) if a.ndim == 4 else a, state)
  reset = jnp.zeros((B, 5), bool).at[0, 2].set(True)
  y, state = call(layer, x[:, 4:], state, reset=reset)
  assert np.isnan(y[0, :2]).all()
  close(y[0, 2:], alone(layer, x[:1, 6:])[0])
  close(y[1], alone(layer, x)[1, 4:])
  assert np.isfinite(state.keys).all()


@pytest.mark.parametrize("length", [1, 3])
def test_a_full_cache_gives_nan_and_is_kept(length):
  layer, x = make(capacity=5), data()
  first = jnp.ones((B, 4), bool).at[1, 2:].set(False)
  _, state = call(layer, x[:, :4], layer.init_state(B), valid=first)  # rows hold 4 and 2
  outputs = []
  for start in range(4, 7, length):
    y, state = call(layer, x[:, start : start + length], state)
    outputs.append(y)
  y = jnp.concatenate(outputs, axis=1)
  expected = alone(layer, x)
  close(y[0, :1], expected[0, 4:5])
  assert np.isnan(y[0, 1:]).all()
  assert np.isfinite(y[1]).all()
  _, kept = call(layer, x[:, :5], layer.init_state(B))
  close(state.keys[0], kept.keys[0])
  again, _ = call(
    layer, x[:, :length], state, reset=jnp.zeros((B, length), bool).at[:, 0].set(True)
  )
  close(again, expected[:, :length])


def test_spans_see_each_other_both_ways():
  layer = make(span="span")
  assert not layer.causal
  span = np.asarray([[1, 1, 0, 0, 0, 2, 2, 2, 0]] * B)
  context = Context(tokens={"span": jnp.asarray(span)})
  x = data()
  y, _ = call(layer, x, Stateless(), context=context)
  sees = lambda i, j: j <= i or span[0, i] == span[0, j] != 0  # noqa: E731
  close(y[0], explicit(layer, x[0], sees))
  carried = replace(layer, capacity=T)
  head, state = call(carried, x[:, :5], carried.init_state(B), context=_cut(context, 0, 5))
  tail, _ = call(carried, x[:, 5:], state, context=_cut(context, 5, T))
  close(jnp.concatenate([head, tail], axis=1), y)


def _cut(context, start, end):
  return context.with_tokens({name: a[:, start:end] for name, a in context.tokens.items()})


@pytest.mark.parametrize("cache_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(cache_dtype):
  layer, x = make(capacity=T, cache_dtype=cache_dtype), data()
  assert layer.init_state(B).keys.dtype == cache_dtype
  y, last = call(layer, x.astype(jnp.bfloat16), layer.init_state(B))
  assert y.dtype == jnp.bfloat16
  assert last.keys.dtype == cache_dtype
  close(y.astype(jnp.float32), alone(layer, x), atol=0.1)
  state, parts = layer.init_state(B), []
  for t in range(T):
    part, state = call(layer, x[:, t : t + 1].astype(jnp.bfloat16), state)
    parts.append(part)
  decoded = jnp.concatenate(parts, axis=1).astype(jnp.float32)
  close(decoded, y.astype(jnp.float32), atol=0.02)
  same(state, last)


def test_gradients_survive_an_overflow_before_a_reset():
  reset = jnp.zeros((B, T), bool).at[:, 4].set(True)
  layer = make(window=3, capacity=T, qk_norm=True)

  def loss(layer, scale):
    x = data().at[:, :4].multiply(scale)
    y, state = layer(x, layer.init_state(B), reset=reset)
    return jnp.sum(y[:, 4:] ** 2) + jnp.sum(state.keys)

  gradient = jax.jit(jax.grad(loss))
  same(gradient(layer, 1.0), gradient(layer, 1e20))


def test_capacity_is_no_parameter():
  stack = Stack(D, pattern=(functools.partial(Attention, heads=2),), repeats=3, rngs=nnx.Rngs(0))
  more = replace(stack, capacity=T)
  same(jax.tree.leaves(stack), jax.tree.leaves(more))
  assert jax.tree.leaves(stack.init_state(B)) == []
  x = data()
  y, state = call(stack, x, stack.init_state(B))
  with_cache, carried = call(more, x, more.init_state(B))
  close(y, with_cache)
  key = next(iter(carried.layers))
  assert carried.layers[key].keys.shape == (3, B, T, 2, 4)


def _compiled(layer, state):
  step = jax.jit(lambda layer, x, state: layer(x, state), donate_argnums=2)
  return step.lower(layer, jnp.ones((B, 1, D)), state).compile()


def test_a_window_costs_the_same_whatever_came_before():
  def cost(capacity, tokens):
    layer = make(window=16, capacity=capacity)
    state = layer.init_state(B)
    _, state = call(layer, data(0, B, tokens), state)
    compiled = _compiled(layer, state)
    return state_bytes(state), compiled.cost_analysis()["flops"]

  assert cost(64, 2) == cost(4096, 300)


def test_decoding_a_deep_stack_works_in_place():
  layer = functools.partial(Attention, heads=2, capacity=2048)
  stack = Stack(D, pattern=(layer,), repeats=12, rngs=nnx.Rngs(0))
  state = stack.init_state(B)
  memory = _compiled(stack, state).memory_analysis()
  assert memory.alias_size_in_bytes >= state_bytes(state)
  assert memory.temp_size_in_bytes < state_bytes(state) / 5


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"heads": 3, "head_dim": None}, "heads=3 does not divide dim=8"),
    ({"kv_heads": 3}, "kv_heads=3 does not divide heads=4"),
    ({"head_dim": 5}, "head_dim=5 is odd"),
    ({"head_dim": 0}, "head_dim=0"),
    ({"window": 0}, "window=0"),
    ({"capacity": -1}, "capacity=-1"),
    ({"rotary": None, "positions": "positions"}, "positions='positions' is read by rotary"),
  ],
)
def test_bad_sizes(options, words):
  with pytest.raises(ValueError, match=words):
    make(**options)


def test_rotary_is_a_rotary():
  with pytest.raises(TypeError, match="rotary=10000.0 must be a Rotary"):
    make(rotary=10_000.0)


def test_bad_calls():
  layer, x = make(capacity=4), data()
  with pytest.raises(ValueError, match="T=9 tokens, more than capacity=4"):
    layer(x, layer.init_state(B))
  with pytest.raises(ValueError, match="of the state given to Attention"):
    layer(x[:, :2], make(capacity=5).init_state(B))
  with pytest.raises(ValueError, match="another structure"):
    layer(x[:, :2], Stateless())
  with pytest.raises(ValueError, match="capacity=0 carries nothing"):
    make()(x, layer.init_state(B))
  with pytest.raises(ValueError, match="valid has shape"):
    layer(x[:, :2], layer.init_state(B), valid=jnp.ones((B, 3), bool))
  spans = make(span="span")
  with pytest.raises(KeyError, match="context.tokens\\['span'\\]"):
    spans(x, Stateless())
  with pytest.raises(ValueError, match="must be integers"):
    spans(x, Stateless(), context=Context(tokens={"span": jnp.zeros((B, T))}))
