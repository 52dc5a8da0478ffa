"""PMI against a re-statement of the released module, what tokens can and cannot see, borders."""

import dataclasses
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Replay, axes, channel, join, split
from memjax.core.module import variable_axes
from memjax.core.usage import measured
from memjax.slots import PMI
from memjax.slots.pmi_step import LTM_UPDATES
from memjax.testing.case import jit

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pmi.npz"
SMALL: dict[str, Any] = {
  "segment": 4, "slots": 3, "heads": 2, "key_size": 3, "long_term": 2, "top_k": 2,
}  # fmt: skip


def make(**options):
  given: dict[str, Any] = SMALL | options
  return PMI(4, **given, rngs=nnx.Rngs(0))


@jit
def call(memory, x, state, valid, reset):
  return memory(x, state, valid=valid, reset=reset)


def run(memory, x, state, valid=None, reset=None):
  """Always with flags: one compilation a length."""
  valid = np.ones(x.shape[:2], bool) if valid is None else valid
  return call(memory, x, state, valid, np.zeros(x.shape[:2], bool) if reset is None else reset)


def draw(length=4, seed=1):
  return np.random.default_rng(seed).normal(size=(2, length, 4)).astype(np.float32)


def outputs(memory, x=None):
  """Of a segment from the first state."""
  return run(memory, draw() if x is None else x, memory.init_state(2))[0]


def freeze(memory):
  """A PMI whose memories stay as they are: shut gates, a constant as long-term memory."""
  memory.step.input_bias[...] = jnp.float32(-jnp.inf)
  memory.step.forget_bias[...] = jnp.float32(jnp.inf)
  memory.step.ltm_norm.scale[...] = jnp.zeros(4)
  memory.step.ltm_norm.bias[...] = jnp.asarray([0.3, -1.0, 0.5, 2.0])
  return memory


@jit
def step_by_step(step, x, long_term):
  """What tokens find in both memories once they have written them."""
  first, tokens = step.init(2), step.perceive(x)
  written = step.write(tokens, dataclasses.replace(first, long_term=long_term))
  return step.read(tokens, written)


@pytest.mark.golden
@pytest.mark.parametrize(
  ("name", "options"), [("corrected", {}), ("soft", {"top_k": None, "correction": False})]
)
def test_equals_the_released_module(name, options):
  golden = {k[len(name) + 1 :]: a for k, a in np.load(GOLDEN).items() if k.startswith(name)}
  made, rest = split(make(causal=False, **options))
  names = {k: f"value|{k.removeprefix('step/')}" for k in made}
  params = {k: golden[name] for k, name in names.items()}
  first = jnp.broadcast_to(golden["value|long_term"], (2, 2, 3, 4))

  def loss(params, x, first):
    memory, ys = join(params, rest), []
    state = memory.init_state(2)
    memories = dataclasses.replace(state.memories, long_term=first)
    state = dataclasses.replace(state, memories=memories)
    for _ in range(2):  # a shared layer's steps
      y, state = memory(x, state)
      x = x + y
      ys.append(y)
    return jnp.sum(jnp.stack(ys) * golden["weights"]), (jnp.stack(ys), state.memories)

  grad = jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, (y, last)), grads = grad(params, golden["value|x"], first)
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(last.working, golden["working"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(last.long_term, golden["long_term"], rtol=1e-5, atol=1e-5)
  found = {names[k][len("value|") :]: g for k, g in grads[0].items()}
  for key, g in (found | {"x": grads[1], "long_term": grads[2].sum(axis=0)}).items():
    expected = golden[f"grad|{key}"]
    atol = max(1e-5 * np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=atol, err_msg=key)


def test_the_two_ways_to_merge_are_their_equations():
  numbers = np.random.default_rng(0)
  old, z = (numbers.normal(size=size).astype(np.float32) for size in ((2, 2, 3, 4), (2, 3, 4)))
  expected = {
    "contracted": np.einsum("bcnd,bnf->bcnf", old, z),
    "outer": np.einsum("bcnd,bnd,bnf->bcnf", old, z, z),
  }
  for name, merge in LTM_UPDATES.items():
    got = merge(old, z)
    np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-6)
  found = [step_by_step(make(ltm_update=name).step, draw(), old) for name in LTM_UPDATES]
  np.testing.assert_array_equal(found[0][0], found[1][0])
  assert (found[0][1] != found[1][1]).any()


def moved(memory):
  """How far a token moves each output of its segment, `[T]`."""
  changed = draw()
  changed[:, 1] += 1
  return np.abs(outputs(memory, changed) - outputs(memory)).max((0, 2))


def test_tokens_talk_through_the_memories_and_the_correction_alone():
  alone = np.arange(4) == 1
  for options in ({"share": 0.0}, {"correction": False}):
    plain, frozen = make(causal=False, **options), freeze(make(causal=False, **options))
    assert (moved(plain) > 1e-4).all()
    np.testing.assert_array_equal(moved(frozen) > 0, alone)
  assert (moved(freeze(make(causal=False))) > 1e-5).all()  # the correction is left


def test_the_largest_weights_keep_their_values():
  look = jit(lambda step, x, told, k: step.look(x, step.told(told), top_k=k), static_argnums=3)
  step, rows, told = make().step, draw(4), draw(5, seed=2)
  (_, kept), (_, weights) = look(step, rows, told, 2), look(step, rows, told, None)
  assert kept.shape == (2, 4, 2, 5)
  kept, weights = np.asarray(kept), np.asarray(weights)
  assert ((kept > 0).sum(-1) == 2).all() and (kept.sum(-1) < 0.999).all()
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
  np.testing.assert_array_equal(np.where(kept > 0, weights, 0), kept)
  np.testing.assert_array_equal(np.sort(kept)[..., -2:], np.sort(weights)[..., -2:])


def test_permuted_tokens_permute_the_outputs():
  memory, order = make(causal=False), np.asarray([2, 0, 3, 1])
  y, state = run(memory, draw(), memory.init_state(2))
  permuted, same = run(memory, draw()[:, order], memory.init_state(2))
  np.testing.assert_allclose(permuted, y[:, order], rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(state, same, rtol=1e-5, atol=1e-6)


def test_an_empty_long_term_memory_says_the_same_to_all_tokens():
  step = make(long_term=1).step
  step.ltm_norm.bias[...] = jnp.asarray([0.3, -1.0, 0.5, 2.0])
  _, found = step_by_step(step, draw(), np.zeros((2, 1, 3, 4), np.float32))
  np.testing.assert_allclose(found, np.tile(found[:, :1], (1, 4, 1)), rtol=1e-6, atol=1e-6)
  value = step.value(step.ltm_norm.bias[...][None])[0]
  expected = 2 / 3 * np.asarray(value)  # two of three equal weights
  np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_without_correction_the_two_reads_are_mixed():
  memory = make(causal=False, correction=False)
  first = memory.init_state(2).memories.long_term
  working, other = step_by_step(memory.step, draw(), first)
  expected = 0.7 * np.asarray(working) + 0.3 * np.asarray(other)
  np.testing.assert_allclose(outputs(memory), expected, rtol=1e-5, atol=1e-6)
  assert np.abs(outputs(make(causal=False)) - outputs(memory)).max() > 0.01


@pytest.mark.parametrize("options", [{}, {"correction": False}, {"causal": False}])
def test_what_each_token_sees(options):
  memory, by = make(**options), np.zeros((8, 8), bool)
  y, _ = run(memory, draw(8), memory.init_state(2))
  for t in range(8):
    x = draw(8)
    x[:, t] += 1
    by[:, t] = np.abs(run(memory, x, memory.init_state(2))[0] - y).max((0, 2)) > 0
  before = np.kron(np.tril(np.ones((2, 2)), -1), np.ones((4, 4))) > 0
  within = np.kron(np.eye(2), np.ones((4, 4))) > 0
  if memory.causal:
    within = np.eye(8) > 0 if options else np.tril(within)
  np.testing.assert_array_equal(by, before | within)


def test_slots_come_apart_also_those_that_start_equal():
  step = make(slots=6).step  # the identity of width 4 has two rows of zeros
  write = jit(lambda step, x: step.write(step.perceive(x), step.init(2)))
  working = np.asarray(write(step, draw()).working)
  apart = np.abs(working[:, :, None] - working[:, None]).max(-1)
  assert (apart + np.eye(6)).min() > 0.01


@pytest.mark.parametrize("correction", [True, False])
def test_token_by_token_equals_whole_segments_with_padding_between(correction):
  memory, x = make(correction=correction), draw(8)
  y, last = run(memory, x, memory.init_state(2))
  state, found = memory.init_state(2), []
  for t in range(8):  # a padded token in front of each
    pair = np.stack([np.full((2, 4), np.nan, np.float32), x[:, t]], axis=1)
    y_t, state = run(memory, pair, state, np.asarray([[False, True]] * 2))
    found.append(y_t[:, 1])
    assert (state.memories.filled == (t + 1) % 4).all()
  np.testing.assert_allclose(jnp.stack(found, 1), y, rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(state, last, rtol=1e-5, atol=1e-5)
  # Padding inside a whole segment: its tokens are as if they stood alone.
  valid = np.asarray([[True, False, True, True]] * 2)
  short, state = run(memory, x[:, :4], memory.init_state(2), valid)
  x = np.where(valid[:, :, None], x[:, :4], 7)
  other, same = run(memory, x, memory.init_state(2), valid)
  np.testing.assert_array_equal(short[:, [0, 2, 3]], other[:, [0, 2, 3]])
  chex.assert_trees_all_equal(state, same)


def test_misuse_gives_nan_until_a_reset():
  memory = make()
  _, part = run(memory, draw(2), memory.init_state(2))
  assert (part.memories.filled == 2).all() and np.abs(part.open.tokens[:, :2]).min() > 0
  for length in (4, 3):  # a whole segment while one is open; past its end
    y, state = run(memory, draw(length), part)
    assert jnp.isnan(y[:, -1]).all() and (state.memories.filled == -1).all()
    reset = np.zeros((2, 4), bool)
    reset[:, 0] = True
    y, state = run(memory, draw(), state, None, reset)
    np.testing.assert_allclose(y, outputs(memory), rtol=1e-5, atol=1e-6)
    assert (state.memories.filled == 0).all()


def test_gradients_stop_at_borders_where_told():
  @jit
  @jax.grad
  def loss(memory):
    return jnp.sum(jnp.square(memory(draw(8), memory.init_state(2))[0]))

  cut = split(loss(make(remat=Replay(detach_every=1))))[0]
  writes = ("mlp", "norm", "mlp_norm", "ltm_norm", "pooled_gates", "slot_", "input_b", "forget_b")
  written = {name for name in cut if name.startswith(tuple(f"step/{w}" for w in writes))}
  assert {name for name, g in cut.items() if not jnp.abs(g).max() > 0} == written


def test_it_measures_where_tokens_read_and_its_gates():
  memory = make(slots=1, top_k=None)
  memory.step.input_bias[...] = jnp.float32(-jnp.inf)

  @jit
  def emitted(memory):
    with channel.collect(measure=True) as frame:
      memory(draw(), memory.init_state(2))
    return frame.emitted

  values = {name: float(mean.value) for name, mean in measured(emitted(memory))[""].items()}
  assert 0.5 < values.pop("forget_gate") < 0.95
  assert values == pytest.approx({"read_peak": 1.0, "slots_read": 1.0, "input_gate": 0.0})


def test_half_precision_in_and_out_with_a_float32_state():
  memory = make()
  y, state = run(memory, jnp.asarray(draw(), jnp.bfloat16), memory.init_state(2))
  floats = {a.dtype for a in jax.tree.leaves(state)} - {jnp.dtype("int32")}
  assert y.dtype == jnp.bfloat16 and floats == {jnp.dtype("float32")}
  # Eight bits of precision, numbers up to 4.
  np.testing.assert_allclose(y.astype(jnp.float32), outputs(memory), atol=0.05)


def test_axes_and_the_first_state():
  memory = make()
  state = memory.init_state(2)
  np.testing.assert_array_equal(state.memories.working[1], np.eye(3, 4))
  first = state.memories.long_term
  assert first.shape == (2, 2, 3, 4) and 0 <= first.min() and 0.5 < first.max() <= 1
  np.testing.assert_array_equal(first[0], first[1])
  assert axes(state).memories.long_term == ("batch", "memory", "slots", "embed")
  assert set(variable_axes(memory)) == {*split(memory)[0], "step/first"}  # which is not trained
  assert state.open.found.keys.shape == (2, 4, 2, 3)
  assert not jax.tree.leaves(make(causal=False).init_state(2).open)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"segment": 0}, "segment=0"),
    ({"heads": 3}, "heads=3 does not divide dim=4"),
    ({"long_term": 0}, "long_term=0"),
    ({"top_k": 0}, "top_k=0"),
    ({"share": 1.5}, r"share=1.5 must lie in \[0, 1\]"),
    ({"ltm_update": "sum"}, "ltm_update='sum' is not one of 'contracted', 'outer'"),
    ({"remat": "half"}, "remat='half'"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_lengths_are_named():
  memory, other = make(), make(causal=False)
  with pytest.raises(ValueError, match="T=6 tokens; with segment=4"):
    memory(draw(6), memory.init_state(2))
  with pytest.raises(ValueError, match=r"T=2 tokens; PMI\(causal=False\).*segment=4"):
    other(draw(2), other.init_state(2))
