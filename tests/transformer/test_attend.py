"""Attention in blocks of queries against the whole matrix of scores, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless
from memjax.transformer import Attention, attend

B, T, S, H, K = 2, 11, 14, 4, 6


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  monkeypatch.setattr(attend, "_BLOCK", 4)  # 11 queries: blocks of 4, 4 and 3


def _mask(name, keys):
  query, key = np.arange(T)[:, None] + keys - T, np.arange(keys)[None]
  rng = np.random.default_rng(1)
  mask = {
    "causal": key <= query,
    "window": (key <= query) & (key > query - 3),
    "within a block": (key <= query) | ((query // 2 == key // 2) & (keys == S)),
    "past a block": (key <= query) | (query // 5 == key // 5),
    "whole": np.ones((T, keys), bool),
    "some": rng.random((B, T, keys)) < 0.5,
  }[name]
  mask = mask.reshape(-1, T, keys) | (query == key)[None]
  return jnp.asarray(mask)


def _plain(q, k, v, mask):
  return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def _gradients(fn, groups, keys, dtype=np.float32):
  rng = np.random.default_rng(0)
  shapes = ((B, T, H, K), (B, keys, groups, K), (B, keys, groups, K), (B, T, H, K))
  *args, dy = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

  def loss(*args):
    y = fn(*args)
    return jnp.sum(y.astype(jnp.float32) * dy), y

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)


def _close(a, b, tolerance=2e-5):
  def close(a, b):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

  jax.tree.map(close, a, b)


CASES = [
  ("causal", None, {}),
  ("window", None, {"window": 3}),
  ("causal", "mask", {}),
  ("window", "mask", {"window": 3}),
  ("within a block", "mask", {"ahead": None}),
  ("past a block", "mask", {"ahead": None}),
  ("some", "mask", {"ahead": None}),
  ("whole", "mask", {"ahead": True}),
]


@pytest.mark.parametrize(("name", "given", "options"), CASES)
@pytest.mark.parametrize(("groups", "keys"), [(4, T), (2, S)])
def test_blocks_are_the_whole(name, given, options, groups, keys):
  mask = _mask(name, keys)
  blocks = functools.partial(attend.attend, mask=mask if given else None, **options)
  expected = functools.partial(_plain, mask=mask)
  _close(_gradients(blocks, groups, keys), _gradients(expected, groups, keys))


def test_bfloat16():
  mask = _mask("causal", T)
  gradients, y = _gradients(attend.attend, 2, T, jnp.bfloat16)
  assert {a.dtype for a in (*gradients, y)} == {jnp.dtype(jnp.bfloat16)}
  _close((gradients, y), _gradients(functools.partial(_plain, mask=mask), 2, T), 0.1)


@pytest.mark.parametrize("flags", ["reset", "valid", "window", "span", "everything"])
def test_a_layer_in_blocks_is_the_layer_in_one(flags, monkeypatch):
  everything, rng = flags == "everything", np.random.default_rng(2)
  window = 3 if everything or flags == "window" else None
  name = "span" if everything or flags == "span" else None
  layer = Attention(8, heads=4, kv_heads=2, head_dim=4, window=window, span=name, rngs=nnx.Rngs(0))
  given = {}
  for name, rate in (("reset", 0.2), ("valid", 0.7)):
    if everything or flags == name:
      given[name] = jnp.asarray(rng.random((B, T)) < rate)
  x = jnp.asarray(rng.normal(size=(B, T, 8)), jnp.float32)
  span = jnp.asarray([[1, 1, 0, 2, 2, 2, 0, 0, 1, 3, 3]] * B)
  context = Context(tokens={"span": span})

  def gradients(layer, x):
    def loss(layer, x):
      y, _ = layer(x, Stateless(), context=context, **given)
      return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(layer, x)

  blocks = gradients(layer, x)
  monkeypatch.setattr(attend, "_BLOCK", T)
  _close(blocks, gradients(layer, x))


def test_keys_that_no_query_sees_cost_nothing():
  def flops(**options):
    q = jax.ShapeDtypeStruct((1, 64, 1, 8), jnp.float32)
    fn = functools.partial(attend.attend, **options)
    cost = jax.jit(fn).lower(q, q, q).compile().cost_analysis()
    assert cost is not None
    return cost["flops"]

  whole = flops(mask=jnp.ones((1, 64, 64), bool), ahead=True)
  assert flops() < 0.65 * whole
  assert flops(window=4) < 0.3 * whole
