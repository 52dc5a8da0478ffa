"""Rotary positions: scaled rates against what each paper says of them, and an official library."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless, replace
from memjax.transformer import Attention, LanguageModel, Rotary, Stack, generate, rope_scaling
from memjax.transformer.rope_scaling import (
  NTK,
  DynamicNTK,
  LongRoPE,
  NTKByParts,
  PositionInterpolation,
  YaRN,
  llama3,
)
from memjax.transformer.rotary import rotate

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "rope_rates.json"
WIDE = tuple(round(1 + 0.3 * i, 1) for i in range(16))
SHORT = tuple(round(1 + 0.05 * i, 2) for i in range(16))
DIM, L0 = 64, 2048

SCALED = {  # at scale s
  "linear": PositionInterpolation,
  "ntk": NTK,
  "dynamic": lambda s: DynamicNTK(L0),
  "by_parts": lambda s: NTKByParts(s, L0),
  "yarn": lambda s: YaRN(s, L0),
  "yarn_turns": lambda s: YaRN(s, L0, ramp="turns"),
  "llama3": lambda s: llama3(s, L0),
  "longrope": lambda s: LongRoPE(s, L0, tuple(1 + (s - 1) * i / 31 for i in range(32))),
}


def rates(scaling, length=1, base=10_000.0, dim=DIM):
  return Rotary(base, scaling).rates(dim, length)


@pytest.mark.golden
@pytest.mark.parametrize(
  ("name", "dim", "base", "scaling", "length"),
  [
    ("linear", 32, 1e4, PositionInterpolation(4.0), 1),
    ("dynamic", 32, 1e4, DynamicNTK(2048), 6000),
    ("dynamic_factor", 64, 1e4, DynamicNTK(2048, factor=2.0), 6000),
    ("dynamic_short", 32, 1e4, DynamicNTK(2048, factor=2.0), 500),
    ("yarn", 128, 1e4, YaRN(16.0, 4096), 1),
    ("yarn_ultralong", 128, 5e5, YaRN(128.0, 8192, beta=4.0), 1),
    ("yarn_narrow", 8, 1e4, YaRN(4.0, 256), 1),
    ("llama3", 128, 5e5, llama3(), 1),
    ("longrope_long", 32, 1e4, LongRoPE(32.0, 4096, WIDE, SHORT), 9000),
    ("longrope_short", 32, 1e4, LongRoPE(32.0, 4096, WIDE, SHORT), 4096),
  ],
)
def test_official_rates(name, dim, base, scaling, length):
  golden = json.loads(GOLDEN.read_text())[name]
  ours = rates(scaling, length, base, dim)
  np.testing.assert_allclose(ours, golden["rates"], rtol=2e-6)  # theirs are float32
  assert Rotary(base, scaling).temperature == pytest.approx(golden["temperature"], rel=1e-12)


@pytest.mark.parametrize("name", SCALED)
def test_scale_one_changes_nothing(name):
  rotary = Rotary(10_000.0, SCALED[name](1.0))
  np.testing.assert_array_equal(rotary.rates(DIM, L0), Rotary().rates(DIM))
  assert rotary.temperature == 1
  assert not np.allclose(rates(SCALED[name](4.0), 4 * L0), Rotary().rates(DIM))


def test_interpolation_turns_a_far_position_as_a_near_one():
  at = jnp.arange(0, 300)
  near = Rotary().angles(at, DIM)
  far = Rotary(scaling=PositionInterpolation(8.0)).angles(8 * at, DIM)
  np.testing.assert_allclose(np.exp(1j * far), np.exp(1j * near), atol=2e-4)


@pytest.mark.parametrize(
  "scaling", [NTK(6.0), DynamicNTK(L0)], ids=lambda scaling: type(scaling).__name__
)
def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest(scaling):
  ratio = rates(scaling, 6 * L0) / Rotary().rates(DIM)
  assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 6, rel=1e-12)
  assert (np.diff(ratio) < 0).all()


def test_dynamic_ntk_is_the_plain_one_up_to_the_original_length():
  scaling = DynamicNTK(L0)
  np.testing.assert_array_equal(rates(scaling, L0), Rotary().rates(DIM))
  assert (rates(scaling, L0 + 1)[1:] < Rotary().rates(DIM)[1:]).all()


def turns():
  return L0 * Rotary().rates(DIM) / (2 * math.pi)


@pytest.mark.parametrize(
  "scaling", [NTKByParts(16.0, L0), YaRN(16.0, L0, ramp="turns"), llama3(16.0, L0)]
)
def test_ramp_of_turns(scaling):
  plain, got = Rotary().rates(DIM), rates(scaling)
  slow, fast = turns() <= scaling.alpha, turns() >= scaling.beta
  assert slow.sum() > 2 and fast.sum() > 2 and (~slow & ~fast).sum() > 2
  np.testing.assert_allclose(got[fast], plain[fast], rtol=1e-12)
  np.testing.assert_allclose(got[slow], plain[slow] / 16, rtol=1e-12)
  kept = (got / plain - 1 / 16) / (1 - 1 / 16)
  line = (turns() - scaling.alpha) / (scaling.beta - scaling.alpha)
  np.testing.assert_allclose(kept[~slow & ~fast], line[~slow & ~fast], rtol=1e-9)


def test_yarn_as_in_the_authors_code():
  plain, got = Rotary().rates(DIM), rates(YaRN(16.0, L0))
  index = lambda r: DIM * math.log(L0 / (2 * math.pi * r)) / (2 * math.log(10_000))  # noqa: E731
  low, high = math.floor(index(32)), math.ceil(index(1))
  np.testing.assert_allclose(got[: low + 1], plain[: low + 1], rtol=1e-12)
  np.testing.assert_allclose(got[high:], plain[high:] / 16, rtol=1e-12)
  kept = (got / plain - 1 / 16) / (1 - 1 / 16)
  np.testing.assert_allclose(np.diff(kept[low : high + 1]), -1 / (high - low), rtol=1e-9)
  paper = rates(YaRN(16.0, L0, ramp="turns"))
  assert not np.allclose(got, paper, rtol=1e-2)  # they agree at the ends only


def test_yarn_temperature():
  assert YaRN(16.0, L0).temperature == pytest.approx(1.277, abs=5e-4)
  assert NTKByParts(16.0, L0).temperature == llama3().temperature == 1
  assert YaRN(16.0, L0, magnitude=1.0).temperature == 1
  q = jax.random.normal(jax.random.key(0), (1, 5, 1, DIM))
  at = jnp.arange(5)[None]
  loud = rotate(q, at, Rotary(scaling=YaRN(16.0, L0)))
  plain = rotate(q, at, Rotary(scaling=YaRN(16.0, L0, magnitude=1.0)))
  np.testing.assert_allclose(loud, 1.2772588722 * plain, rtol=1e-5)


@pytest.mark.parametrize("name", [None, *SCALED])
def test_products_depend_on_distance(name):
  rotary = Rotary(scaling=name and SCALED[name](4.0))
  q, k = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, DIM))

  @jax.jit
  def score(i, j):
    at = lambda a, p: rotate(a, p.reshape(1, 1), rotary, length=4 * L0)  # noqa: E731
    return jnp.sum(at(q, i) * at(k, j))

  score = functools.partial(lambda s, i, j: float(s(jnp.int32(i), jnp.int32(j))), score)
  for shift in (1000, 4000):
    assert score(30 + shift, 10 + shift) == pytest.approx(score(30, 10), abs=2e-3)
  assert abs(score(30, 10) - score(30, 11)) > 1e-2


def test_start_tokens_keep_their_rates():
  scaling = LongRoPE(4.0, 16, WIDE, start_tokens=6)
  rotary, at = Rotary(scaling=scaling), jnp.arange(12)
  got, plain = rotary.angles(at, 32, 64), Rotary().angles(at, 32)
  np.testing.assert_array_equal(got[:6], plain[:6])
  np.testing.assert_allclose(got[6:], np.asarray(plain[6:]) / WIDE, rtol=1e-6)


@pytest.mark.parametrize("scaling", [None, YaRN(512.0, 8192, beta=4.0)])
def test_angles_are_exact_at_four_million(scaling):
  rotary = Rotary(500_000.0, scaling)
  at = np.asarray([2047, 2048, 1_000_003, 4_194_303])
  exact = np.exp(1j * at[:, None] * rotary.rates(128))
  angles = np.asarray(jax.jit(lambda p: rotary.angles(p, 128))(jnp.asarray(at, jnp.int32)))
  assert np.abs(np.exp(1j * angles.astype(np.float64)) - exact).max() < 1e-3
  naive = np.float32(at)[:, None] * np.float32(rotary.rates(128))
  assert np.abs(np.exp(1j * naive.astype(np.float64)) - exact).max() > 2e-2


# In attention.


def make(**options):
  return Attention(8, heads=2, rngs=nnx.Rngs(0), **options)


@jax.jit
def run(layer, x, context=None):
  state = layer.init_state(x.shape[0]) if layer.capacity else Stateless()
  return layer(x, state, context=context)[0]


@jax.jit
def step(layer, x, state, context=None):
  return layer(x, state, context=context)


def inputs(length=8):
  return jax.random.normal(jax.random.key(3), (2, length, 8))


def at(positions):
  return Context(tokens={"positions": jnp.broadcast_to(jnp.asarray(positions, jnp.int32), (2, 8))})


def test_attention_uses_its_scaling():
  x = inputs()
  plain, scaled = make(), make(rotary=Rotary(scaling=PositionInterpolation(4.0)))
  assert not np.allclose(run(plain, x), run(scaled, x), atol=1e-4)
  spread = make(rotary=Rotary(scaling=PositionInterpolation(4.0)), positions="positions")
  np.testing.assert_allclose(run(spread, x, at(4 * np.arange(8))), run(plain, x), atol=1e-5)


def test_positions_given_are_read_by_those_built_to():
  x, skipped = inputs(), np.asarray([0, 1, 2, 9, 10, 30, 31, 32])
  reads, counts = make(positions="positions"), make()
  np.testing.assert_allclose(run(reads, x, at(np.arange(8))), run(counts, x), atol=1e-6)
  np.testing.assert_allclose(run(reads, x, at(np.arange(8) + 50)), run(counts, x), atol=1e-4)
  moved = run(reads, x, at(skipped))
  np.testing.assert_allclose(moved[:, :3], run(counts, x)[:, :3], atol=1e-6)
  assert not np.allclose(moved[:, 3:], run(counts, x)[:, 3:], atol=1e-3)
  np.testing.assert_array_equal(run(counts, x, at(skipped)), run(counts, x))
  with pytest.raises(KeyError, match="reads context.tokens\\['positions'\\]"):
    run(reads, x)
  with pytest.raises(ValueError, match="positions'\\] is float32"):
    run(reads, x, Context(tokens={"positions": jnp.zeros((2, 8))}))


def test_the_mask_is_by_order_not_by_position():
  x = inputs()
  same = make(positions="positions", window=3)
  far = run(same, x, at(100 * np.arange(8)))
  changed = run(same, x.at[:, 5:].add(1.0), at(100 * np.arange(8)))
  np.testing.assert_array_equal(far[:, :5], changed[:, :5])
  older = run(same, x.at[:, 0].add(1.0), at(100 * np.arange(8)))
  assert not np.allclose(far[:, 2], older[:, 2], atol=1e-4)  # 200 positions, but 2 tokens away
  np.testing.assert_array_equal(far[:, 3:], older[:, 3:])


def test_cached_keys_stand_where_they_were_put():
  x, skipped = inputs(), np.asarray([0, 1, 2, 9, 10, 30, 31, 32])
  layer = make(positions="positions", capacity=8)
  whole = run(layer, x, at(skipped))
  state, parts = layer.init_state(2), []
  for t in range(8):
    context = Context(tokens={"positions": jnp.full((2, 1), skipped[t], jnp.int32)})
    y, state = step(layer, x[:, t : t + 1], state, context)
    parts.append(y)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)


def test_dynamic_ntk_is_decided_by_what_the_cache_can_hold():
  x, rotary = inputs(), Rotary(scaling=DynamicNTK(4))
  layer, fixed = make(rotary=rotary, capacity=8), make(rotary=Rotary(scaling=NTK(2.0)))
  np.testing.assert_allclose(run(layer, x), run(fixed, x), atol=1e-5)
  state, parts = layer.init_state(2), []
  for t in range(8):
    y, state = step(layer, x[:, t : t + 1], state)
    parts.append(y)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), run(fixed, x), atol=1e-5)


def test_generation_continues_a_scaled_model():
  def build(**options):
    attention = functools.partial(Attention, heads=2, **options)
    body = functools.partial(Stack, pattern=(attention,))
    return LanguageModel(11, 8, body=body, rngs=nnx.Rngs(0))

  model = build(rotary=Rotary(scaling=YaRN(4.0, 8)), positions="positions")
  prompt = jnp.asarray([[3, 1, 4, 1, 5]])
  made = generate(replace(model, positions=None), prompt, max_new_tokens=4)
  ids = jnp.concatenate([prompt, made.tokens], axis=1)
  places = Context(tokens={"positions": jnp.arange(ids.shape[1])[None]})
  logits, _ = model(ids, model.init_state(1), context=places)
  np.testing.assert_array_equal(made.tokens[0], jnp.argmax(logits[0, 4:-1], axis=-1))


@pytest.mark.parametrize(
  ("build", "words"),
  [
    (lambda: NTK(0.5), "scale=0.5 must be a number >= 1"),
    (lambda: YaRN(True, 8), "scale=True"),
    (lambda: YaRN(2.0, 0), "original_length=0"),
    (lambda: YaRN(2.0, 8, alpha=4.0, beta=4.0), "0 < alpha < beta"),
    (lambda: YaRN(2.0, 8, ramp="paper"), "ramp='paper' is not one of 'index', 'turns'"),
    (lambda: YaRN(2.0, 8, magnitude=0.0), "magnitude=0.0"),
    (lambda: LongRoPE(2.0, 8, ()), "long=\\(\\)"),
    (lambda: LongRoPE(2.0, 8, (1.0,), short=[1.0]), "short=\\[1.0\\]"),
    (lambda: LongRoPE(2.0, 8, (1.0,), start_tokens=-1), "start_tokens=-1"),
    (lambda: LongRoPE(2.0, 8, (1.0,)).rates(1e4, 8, 9), "1 divisors; a head of dim=8 has 4"),
    (lambda: NTK(2.0).rates(1e4, 2, 1), "dim=2 has one pair"),
    (lambda: Rotary(1.0), "base=1.0"),
    (lambda: Rotary().rates(7), "dim=7 is odd"),
  ],
)
def test_bad_arguments(build, words):
  with pytest.raises(ValueError, match=words):
    build()


def test_scaling_is_one_of_ours():
  with pytest.raises(TypeError, match="scaling='yarn' of Rotary must be one of"):
    Rotary(scaling="yarn")
  assert issubclass(YaRN, rope_scaling.Scaling)
