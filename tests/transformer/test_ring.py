"""Attention over tokens that are cut along time: against explicit sums, and through the layer."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from memjax.core import Context, Stateless, replace
from memjax.core.sequence_sharding import (
  SequenceSharding,
  arrange,
  cummax,
  cumsum,
  fold,
  frame,
  unfold,
  unframe,
)
from memjax.core.sharding import make_mesh, with_layout
from memjax.testing.collectives import collectives
from memjax.testing.hlo import arrays
from memjax.transformer import Attention, attention
from memjax.transformer.ring import Marks, ring_attend

B, T, H, G, K = 2, 24, 4, 2, 4
NUMBERS = np.random.default_rng(0)
Q, KEYS, VALUES, DY = (
  NUMBERS.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (H, G, G, H)
)
SEGMENT = np.cumsum(NUMBERS.random((B, T)) < 0.15, axis=1).astype(np.int32)
SPAN = np.repeat(NUMBERS.integers(0, 3, (B, T // 3)), 3, axis=1).astype(np.int32)
VALID = NUMBERS.random((B, T)) < 0.7
POSITION = (np.cumsum(VALID, axis=1) - VALID).astype(np.int32)


def layout(context=1, data=1, model=1, **options):
  devices = jax.devices()[: context * data * model]
  mesh = make_mesh({"data": data, "context": context, "model": model}, devices)
  sizes = {"batch": "data", "time": "context", "heads": "model"}
  cut = {name: (axis,) if mesh.shape[axis] > 1 else () for name, axis in sizes.items()}
  return SequenceSharding(mesh, **cut, **options)


def explicit(q, k, v, seen):
  """Over the keys that `seen [B, T, T]` names."""
  k, v = (jnp.repeat(a, H // G, axis=2) for a in (k, v))
  scores = jnp.einsum("bthk,bshk->bhts", q, k) * K**-0.5
  weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum("bhts,bshk->bthk", weights, v)


def pairs(marks, window):
  """Which tokens see which, one by one: `[B, T, T]`."""
  seen = np.zeros((B, T, T), bool)
  for b, i, j in np.ndindex(B, T, T):
    far = i - j if marks.position is None else marks.position[b, i] - marks.position[b, j]
    sees = i >= j and (window is None or far < window)
    if marks.span is not None:
      sees |= marks.span[b, i] == marks.span[b, j] != 0
    if marks.segment is not None:
      sees &= marks.segment[b, i] == marks.segment[b, j]
    if marks.valid is not None:
      sees &= marks.valid[b, j]
    seen[b, i, j] = sees or i == j
  return seen


def gradients(fn):
  def run(q, k, v, dy):
    y, back = jax.vjp(fn, q, k, v)
    return y, *back(dy)

  return jax.jit(run)(Q, KEYS, VALUES, DY)


ALL = Marks(SEGMENT, SPAN, VALID, POSITION)
CASES = {
  "one device": ({}, Marks(), None, 5),
  "causal, zigzag": ({"context": 4}, Marks(), None, 4),
  "an odd number": ({"context": 3}, Marks(), None, 4),
  "odd pieces, blocks that do not divide": ({"context": 8}, Marks(), None, 2),
  "window, few hops": ({"context": 8}, Marks(), 3, 4),
  "packed, spans, padding, window": ({"context": 4}, ALL, 4, 4),
  "packed": ({"context": 4}, Marks(segment=SEGMENT), None, 4),
  "window over a segment": ({"context": 3}, Marks(segment=SEGMENT), 5, 512),
  "spans": ({"context": 3}, Marks(span=SPAN), None, 3),
  "padding, with rows and heads cut": (
    {"context": 2, "data": 2, "model": 2}, Marks(valid=VALID), None, 512,
  ),
}  # fmt: skip
DEFAULT = list(CASES)[1:6:2] + list(CASES)[4:5]


@pytest.mark.parametrize(
  "name", [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_a_ring_equals_explicit_sums_in_values_and_gradients(name):
  sizes, marks, window, block = CASES[name]
  ring = functools.partial(ring_attend, layout(**sizes), marks=marks, window=window, block=block)
  seen = pairs(marks, window)
  want = gradients(lambda q, k, v: explicit(q, k, v, seen))
  for got, expected in zip(gradients(lambda *a: ring(*a)), want, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def hops(window):
  ring = functools.partial(ring_attend, layout(context=8), window=window)
  text = jax.jit(lambda *a: ring(*a)).lower(Q, KEYS, VALUES).compile().as_text()
  trips = re.findall(r'known_trip_count":\{"n":"(\d+)"', text)
  permutes = re.findall(r" collective-permute(?:-start)?\(", text)
  return max(map(int, trips), default=0) if permutes else 0


@pytest.mark.parametrize(("window", "expected"), [(None, 7), (1, 0), (8, 3)])
def test_a_window_meets_only_the_pieces_it_reaches(window, expected):
  """Pieces of 3 tokens: 7 tokens before its own reach 3 pieces further."""
  assert hops(window) == expected


@pytest.mark.parametrize("length", [4096, pytest.param(32768, marks=pytest.mark.slow)])
def test_no_device_holds_more_than_its_piece_and_one_block_of_scores(length):
  """Neither pass has an array that grows faster than a piece."""
  heads, devices, block = 2, 8, 64
  q = jax.ShapeDtypeStruct((1, length, heads, K), jnp.float32)
  ring = functools.partial(ring_attend, layout(context=devices), block=block)
  loss = lambda q, k, v: jnp.sum(jnp.sin(ring(q, k, v)))  # noqa: E731
  compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, q, q).compile()
  piece = length // devices * heads * K
  sizes = [int(np.prod(shape)) for _, shape in arrays(compiled.as_text())]
  assert max(sizes) <= max(2 * piece, heads * block * block)
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * (30 * piece + 8 * heads * block**2)


# ---- the layer

make = functools.partial(Attention, 8, heads=4, kv_heads=2, head_dim=4)
X = NUMBERS.standard_normal((B, T, 8)).astype(np.float32)
FLAGS = {
  "causal": ({}, {}),
  "window": ({"window": 5}, {}),
  "packed": ({"qk_norm": True}, {"reset": NUMBERS.random((B, T)) < 0.2}),
  "everything": (
    {"window": 4, "span": "span"},
    {
      "reset": NUMBERS.random((B, T)) < 0.2, "valid": VALID,
      "context": Context(tokens={"span": SPAN}),
    },
  ),
}  # fmt: skip


def called(layer, flags):
  valid = flags.get("valid", np.ones((B, T), bool))[..., None]

  def run(layer, x):
    return jnp.where(valid, layer(x, Stateless(), **flags)[0], 0)

  def total(layer, x):
    y = run(layer, x)
    return jnp.sum(jnp.sin(3 * y)), y

  (_, y), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(layer, X)
  return [y, *jax.tree.leaves(grads)]


@pytest.mark.parametrize(
  ("name", "sizes", "method"),
  [
    ("everything", {"context": 4}, "ring"),
    ("packed", {"context": 2, "model": 2}, "all_to_all"),
    pytest.param("everything", {"context": 2}, "all_to_all", marks=pytest.mark.slow),
    pytest.param("everything", {"context": 3}, "ring", marks=pytest.mark.slow),
    pytest.param("packed", {"context": 2, "data": 2, "model": 2}, "ring", marks=pytest.mark.slow),
    pytest.param("window", {"context": 8}, "ring", marks=pytest.mark.slow),
    pytest.param("causal", {"data": 2, "model": 2}, "ring", marks=pytest.mark.slow),
    pytest.param("everything", {"data": 2, "model": 2}, "ring", marks=pytest.mark.slow),
  ],
)
def test_a_layer_told_how_tokens_lie_computes_the_same(name, sizes, method):
  options, flags = FLAGS[name]
  heads = {"heads": 8, "kv_heads": 4} if method == "all_to_all" else {}
  layer = make(**options, **heads, rngs=nnx.Rngs(0))
  cut = layout(**sizes, method=method)
  want, got = called(layer, flags), called(replace(layer, sequence_sharding=cut), flags)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("options", "sizes", "message"),
  [
    ({}, {"context": 5}, r"length=24 is not divisible by context=5"),
    ({}, {"model": 8}, r"heads=4 is not divisible by model=8"),
    ({}, {"model": 4}, r"kv_heads=2 is not divisible by model=4"),
    ({"capacity": 24}, {"context": 2}, r"carries a cache, which is not cut along time"),
  ],
)
def test_what_cannot_be_cut_is_refused(options, sizes, message):
  layer = make(**options, rngs=nnx.Rngs(0))
  layer = with_layout(layer, layout(**sizes).mesh)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: layer(X, layer.init_state(B)))


def test_all_to_all_needs_as_many_heads_as_devices():
  layer = replace(make(rngs=nnx.Rngs(0)), sequence_sharding=layout(context=4, method="all_to_all"))
  with pytest.raises(ValueError, match="kv_heads=2 is not divisible by context=4"):
    jax.eval_shape(lambda: layer(X, Stateless()))
  with pytest.raises(ValueError, match="method='rings' is not one of 'ring', 'all_to_all'"):
    layout(context=2, method="rings")


# ---- what crosses the borders of pieces


def test_sums_and_largest_run_across_devices():
  x = NUMBERS.integers(0, 9, (B, 3, T)).astype(np.int32)
  cut = layout(context=4, data=2)
  np.testing.assert_array_equal(cumsum(x, cut), np.cumsum(x, axis=-1))
  np.testing.assert_array_equal(cummax(x, cut), np.maximum.accumulate(x, axis=-1))


def test_segments_are_folded_where_their_tokens_lie():
  """`arrange` and `token_order` agree; the fold of what they give moves nothing."""
  cut, segment = layout(context=4), 8
  x = np.arange(B * T, dtype=np.int32).reshape(B, T)
  order = cut.token_order(T, segment)
  np.testing.assert_array_equal(jax.jit(lambda x: arrange(x, segment, cut))(x), x[:, order])
  there = jax.device_put(x[:, order], NamedSharding(cut.mesh, cut.spec()))
  run = jax.jit(lambda x: fold(x, segment, cut)).lower(there).compile()
  assert not collectives(run.as_text())
  np.testing.assert_array_equal(run(there), x.reshape(B, -1, segment))
  back = jax.jit(lambda x: unfold(fold(x, segment, cut), cut))(there)
  np.testing.assert_array_equal(back, there)


@pytest.mark.parametrize("context", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_blocks_around_a_cut_segment(context):
  """With gradients; 4 tokens before and after, 24 between."""
  cut = layout(context=context)
  before, after = (NUMBERS.standard_normal((B, 4, 3)).astype(np.float32) for _ in range(2))
  x = NUMBERS.standard_normal((B, T, 3)).astype(np.float32)
  weights = NUMBERS.standard_normal((B, T + 8, 3)).astype(np.float32)

  @jax.jit
  def run(before, x, after, weights):
    z, back = jax.vjp(lambda *a: frame(*a, cut), before, x, after)
    parts, back_parts = jax.vjp(lambda z: unframe(z, 4, cut), z)
    return z, back(weights), parts, back_parts((x, after))[0]

  z, grads, (y, end), dz = run(before, x, after, weights)
  np.testing.assert_array_equal(z, np.concatenate([before, x, after], axis=1))
  for got, want in zip(grads, np.split(weights, [4, T + 4], axis=1), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_array_equal(y, x)
  np.testing.assert_array_equal(end, after)
  np.testing.assert_allclose(dz, np.concatenate([np.zeros_like(before), x, after], axis=1))


def test_pairs_of_blocks_are_not_kept_over_a_scan_of_layers():
  """Masks depend on no layer: out of the scan, those of all pairs of blocks would stand at once."""
  cut, length, block = layout(4), 128, 8
  x = jnp.zeros((1, length, 1, K))

  def loss(scales):
    @jax.checkpoint
    def layer(x, scale):
      return x + ring_attend(cut, x * scale, x, x, block=block), None

    return jnp.sum(jax.lax.scan(layer, x, scales)[0])

  text = jax.jit(jax.grad(loss)).lower(jnp.ones(3)).compile().as_text()
  held = {math.prod(size) for _, size in arrays(text) if size[-2:] == (block, block)}
  assert held and max(held) == block * block, held


@pytest.mark.parametrize(
  "name",
  [
    "everything",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("packed", "window", "causal")),
  ],
)
def test_many_tokens_on_one_device_go_the_same_way(monkeypatch, name):
  """A long call takes blocks of keys, and says the same."""
  options, flags = FLAGS[name]
  layer = make(**options, rngs=nnx.Rngs(0))
  want = called(layer, flags)
  monkeypatch.setattr(attention, "LONG", 4)
  monkeypatch.setattr(attention, "attend_apart", None)
  for a, b in zip(called(layer, flags), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_memory_of_many_tokens_is_in_proportion():
  layer = Attention(32, heads=2, rngs=nnx.Rngs(0))

  def peak(length):
    loss = lambda layer, x: jnp.sum(layer(x, layer.init_state(1))[0])  # noqa: E731
    x = jax.ShapeDtypeStruct((1, length, 32), jnp.float32)
    return jax.jit(jax.grad(loss)).lower(layer, x).compile().memory_analysis().temp_size_in_bytes

  assert peak(16384) < 2.2 * peak(8192)
