"""LM2 against a re-statement of the released module, its gates, borders, and what leaks."""

import dataclasses
import functools
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Replay, axes, join, split
from memjax.core.module import variable_axes
from memjax.slots import LM2
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "lm2.npz"
SMALL = {"slots": 4, "heads": 2}


def make(**options):
  given: dict[str, Any] = SMALL | options
  return LM2(8, **given, rngs=nnx.Rngs(0))


@jax.jit
def run(memory, x, state, valid=None, context=None):
  return memory(x, state, valid=valid, context=context)


def inputs(length=8, batch=2, seed=1):
  return jax.random.normal(jax.random.key(seed), (batch, length, 8))


def fix(layer, logit):
  """A gate that is the same everywhere."""
  layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
  layer.bias[...] = jnp.full_like(layer.bias[...], logit)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "top_k"), [("all", None), ("largest", 2)])
def test_equals_the_released_module(name, top_k):
  golden = {k[len(name) + 1 :]: a for k, a in np.load(GOLDEN).items() if k.startswith(name)}
  memory = LM2(4, slots=4, heads=2, variant="code", top_k=top_k, rngs=nnx.Rngs(0))
  drawn, rest = split(memory)
  params = {k: jnp.asarray(golden[f"value|{k}"]) for k in drawn}
  x, weights = jnp.asarray(golden["value|x"]), golden["weights"]

  def loss(params, x):
    memory = join(params, rest)
    y, _ = memory(x, memory.init_state(2))
    return jnp.sum((x + y) * weights), x + y  # alone, it leaves out the summand

  (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-6)
  for key, grad in (grads[0] | {"x": grads[1]}).items():
    expected = golden[f"grad|{key}"]
    atol = max(1e-5 * np.abs(expected).max(), 1e-6)  # a bias on all keys changes nothing
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=atol)


def attend(*projected, heads=2):
  """Attention by heads of one row, in the words of the paper: queries, keys and values."""
  outs = []
  for q, k, v in zip(*(np.split(a, heads, axis=1) for a in projected), strict=True):
    scores = np.exp(q @ k.T / k.shape[1] ** 0.5)
    outs.append(scores / scores.sum(1, keepdims=True) @ v)
  return np.concatenate(outs, axis=1)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("variant", ["shared", "paper"])
def test_equals_its_equations(variant):
  lm2 = make(variant=variant)
  p = {name: np.asarray(a, np.float64) for name, a in split(lm2)[0].items()}

  def dense(name, x):
    return x @ p[f"{name}/kernel"] + p.get(f"{name}/bias", 0)

  y, state = run(lm2, inputs(), lm2.init_state(2))
  for row in range(2):
    memory, expected = np.eye(4, 8), []
    for e in np.split(np.asarray(inputs()[row], np.float64), 2):
      r = attend(dense("query", e), dense("key", memory), dense("value", memory))
      expected.append(sigmoid(dense("gate", r)) * r)
      if variant == "shared":
        looked = (("query", memory), ("key", e), ("value", e))
        u = attend(*(dense(f"update/{name}", a) for name, a in looked))
        c, keep = u - u.mean(1, keepdims=True), dense("update/forget_gate", memory)
        c = c / np.sqrt((c * c).mean(1, keepdims=True) + 1e-5)
      else:
        u, c, keep = e, r, dense("update/forget_gate", r)
      memory = sigmoid(dense("update/input_gate", u)) * np.tanh(c) + sigmoid(keep) * memory
    np.testing.assert_allclose(y[row], np.concatenate(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.memory[row], memory, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["shared", "paper"])
def test_closed_gates_give_the_plain_layer_and_a_constant_memory(variant):
  attention = functools.partial(Attention, heads=2)
  lm2 = make(variant=variant, attention=attention)
  fix(lm2.gate, -jnp.inf)
  fix(lm2.update.input_gate, -jnp.inf)
  fix(lm2.update.forget_gate, jnp.inf)
  first = lm2.init_state(2)
  y, state = run(lm2, inputs(), first)
  plain, _ = run(lm2.attention, inputs(), first.attention)
  np.testing.assert_array_equal(y, plain)
  np.testing.assert_array_equal(state.memory, first.memory)


def changed_before(variant):
  """How far the last token moves the outputs before it."""
  lm2 = make(variant=variant)
  _, state = run(lm2, inputs(4), lm2.init_state(2))
  x = inputs(4, seed=2)
  before, _ = run(lm2, x, state)
  after, _ = run(lm2, x.at[:, -1].add(1), state)
  assert jnp.abs(before - after)[:, -1].max() > 1e-3
  return float(jnp.abs(before - after)[:, :-1].max())


@pytest.mark.parametrize("variant", ["shared", "paper"])
def test_the_future_is_not_seen(variant):
  assert changed_before(variant) == 0 and make(variant=variant).causal


def test_pooled_gates_of_the_released_code_leak_the_future():
  assert changed_before("code") > 1e-3 and not make(variant="code").causal


@pytest.mark.parametrize("variant", ["shared", "paper"])
def test_slots_of_the_last_segment_are_read_in_the_next(variant):
  lm2 = make(variant=variant)

  @jax.jit
  def sensitivity(x):
    return jax.jacobian(lambda x: lm2(x, lm2.init_state(2))[0])(x)  # [B, T, D, B, T, D]

  by = jnp.abs(sensitivity(inputs(12))).max((0, 2, 3, 5))
  expected = np.kron(np.tril(np.ones((3, 3)), -1), np.ones((4, 4)))
  if variant == "shared":
    np.testing.assert_array_equal(by > 0, (expected + np.eye(12)) > 0)
  else:  # every token writes, though the slot of one token only
    assert ((by > 0) <= ((expected + np.eye(12)) > 0)).all() and (by[4:8, :4] > 0).all()


def test_slots_differ_after_a_segment():
  lm2 = make()
  _, state = run(lm2, inputs(), lm2.init_state(2))
  apart = jnp.abs(state.memory[:, :, None] - state.memory[:, None]).max(-1)
  assert (apart + jnp.eye(4)[None]).min() > 0.05


def test_only_the_largest_weights_count():
  lm2, one = make(top_k=4), make(top_k=1)
  y, _ = run(lm2, inputs(4), lm2.init_state(2))
  all_of_them, _ = run(make(), inputs(4), lm2.init_state(2))
  np.testing.assert_allclose(y, all_of_them, rtol=1e-6)
  slots = jnp.eye(4, 8)
  projected = one.query(inputs(4)), one.key(slots), one.value(slots)
  r = []
  for q, k, v in zip(*(np.split(np.asarray(a), 2, axis=-1) for a in projected), strict=True):
    scores = np.exp(q @ k.T / 2)
    weights = scores / scores.sum(-1, keepdims=True)
    r.append(weights.max(-1, keepdims=True) * v[weights.argmax(-1)])
  r = np.concatenate(r, axis=-1)
  gate = {name: np.asarray(a) for name, a in split(one)[0].items() if name.startswith("gate")}
  logits = r @ gate["gate/kernel"] + gate["gate/bias"]
  y, _ = run(one, inputs(4), one.init_state(2))
  np.testing.assert_allclose(y, sigmoid(logits) * r, rtol=1e-4, atol=1e-6)


def test_dropout_needs_a_key():
  lm2, still = make(dropout=0.5), make()
  first = still.init_state(2)
  plain, _ = run(still, inputs(), first)
  np.testing.assert_array_equal(run(lm2, inputs(), first)[0], plain)
  noisy, _ = run(lm2, inputs(), first, context=Context(key=jax.random.key(0)))
  assert jnp.abs(noisy - plain).max() > 0.01


def test_misuse_gives_nan_until_a_reset():
  lm2 = make()
  _, part = run(lm2, inputs(2), lm2.init_state(2))
  assert (part.filled == 2).all() and jnp.abs(part.open[:, :2]).min() > 0
  for x in (inputs(4), inputs(3)):  # a whole segment while one is open; past its end
    y, state = run(lm2, x, part)
    assert jnp.isnan(y[:, -1]).all() and (state.filled == -1).all()
    reset = jnp.zeros((2, 4), bool).at[:, 0].set(True)
    y, state = jax.jit(lambda s, reset: lm2(inputs(4), s, reset=reset))(state, reset)
    np.testing.assert_allclose(y, run(lm2, inputs(4), lm2.init_state(2))[0], rtol=1e-6)
    assert (state.filled == 0).all()


def test_gradients_reach_every_parameter_and_remat_keeps_them():
  def grads(**options):
    lm2 = make(attention=functools.partial(Attention, heads=2), **options)

    @jax.jit
    @jax.grad
    def loss(lm2):
      return jnp.sum(jnp.square(lm2(inputs(), lm2.init_state(2))[0]))

    return split(loss(lm2))[0]

  plain = grads()
  chex.assert_tree_all_finite(plain)
  assert [name for name, g in plain.items() if not jnp.abs(g).max() > 0] == []
  chex.assert_trees_all_close(plain, grads(remat="full"), rtol=1e-4, atol=1e-5)
  cut = grads(remat=Replay(detach_every=1))
  assert all(jnp.abs(g).max() == 0 for name, g in cut.items() if name.startswith("update"))


def test_a_layer_of_a_language_model_at_any_index():
  attention = functools.partial(Attention, heads=2, capacity=16)
  lm2 = functools.partial(LM2, attention=attention, slots=4, segment=4, heads=2)
  feed_forward = functools.partial(FeedForward, hidden=8)
  body = functools.partial(
    Stack, pattern=(attention, feed_forward), repeats=3, exceptions={1: (lm2, feed_forward)}
  )
  model = LanguageModel(11, 8, body=body, rngs=nnx.Rngs(0))
  ids = jax.random.randint(jax.random.key(0), (2, 8), 0, 11)
  whole, last = run(model, ids, model.init_state(2))
  state, logits = model.init_state(2), []
  for t in range(8):
    y, state = run(model, ids[:, t : t + 1], state)
    logits.append(y)
  np.testing.assert_allclose(jnp.concatenate(logits, axis=1), whole, rtol=1e-4, atol=1e-4)
  chex.assert_trees_all_close(state, last, rtol=1e-4, atol=1e-4)


def test_half_precision_in_and_out_with_a_float32_state():
  lm2 = make()
  y, state = run(lm2, inputs().astype(jnp.bfloat16), lm2.init_state(2))
  exact, _ = run(lm2, inputs(), lm2.init_state(2))
  assert y.dtype == jnp.bfloat16 and state.memory.dtype == jnp.float32
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.parametrize("variant", ["shared", "paper", "code"])
def test_axes_and_the_first_state(variant):
  lm2 = make(variant=variant)
  state = lm2.init_state(2)
  np.testing.assert_array_equal(state.memory[1], jnp.eye(4, 8))
  assert axes(state).memory == ("batch", "slots", "embed")
  assert set(variable_axes(lm2)) == set(split(lm2)[0])
  held = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  assert held["open"].shape == (2, 0 if variant == "code" else 4, 8)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 9}, "slots=9 exceeds dim=8"),
    ({"slots": 0}, "slots=0"),
    ({"segment": 0}, "segment=0"),
    ({"heads": 3}, "heads=3 does not divide dim=8"),
    ({"variant": "released"}, "variant='released' is not one of 'shared', 'paper', 'code'"),
    ({"variant": "code", "segment": 6}, "variant='code' ties every token to a slot, so segment=6"),
    ({"variant": "paper", "segment": 2}, "must be slots=4"),
    ({"top_k": 5}, "top_k=5 must be None or an integer from 1 to slots=4"),
    ({"dropout": 1.0}, "dropout=1.0"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_lengths_are_named():
  code, shared = make(variant="code"), make()
  with pytest.raises(ValueError, match="T=6 tokens; LM2.variant='code'. ties tokens to slots=4"):
    code(inputs(6), code.init_state(2))
  with pytest.raises(ValueError, match="T=2 tokens; LM2.variant='code'."):
    code(inputs(2), code.init_state(2))
  with pytest.raises(ValueError, match="T=6 tokens; with segment=4"):
    shared(inputs(6), shared.init_state(2))
