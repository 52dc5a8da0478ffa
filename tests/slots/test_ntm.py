"""The Neural Turing Machine against a plain restatement, and what its heads must be able to do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import axes, split
from memjax.core.module import variable_axes
from memjax.slots import NeuralTuringMachine

SMALL = {"out": 3, "slots": 6, "width": 4, "hidden": 5}


def make(**options):
  return NeuralTuringMachine(3, **(SMALL | options), rngs=nnx.Rngs(0))


@jax.jit
def run(ntm, x, state):
  return ntm(x, state)


def inputs(batch=2, length=5):
  return jax.random.normal(jax.random.key(1), (batch, length, 3))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def softplus(x):
  return np.log1p(np.exp(x))


def lstm(parts, x, extra, state):
  new, h = [], None
  for layer, (h_old, c_old) in enumerate(state):
    below, back = (x, np.concatenate([extra, h_old])) if layer == 0 else (h, h_old)
    inner, recurrent = parts.inner[layer], parts.recurrent[layer]
    gates = below @ np.asarray(inner.kernel[...]) + np.asarray(inner.bias[...])
    i, f, g, o = np.split(gates + back @ np.asarray(recurrent.kernel[...]), 4)
    c = sigmoid(f) * c_old + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    new.append((h, c))
  return h, new


def mlp(parts, x, extra, state):
  kernel = np.concatenate([parts.inner.kernel[...], parts.fed_back.kernel[...]])
  h = np.tanh(np.concatenate([x, extra]) @ kernel + np.asarray(parts.inner.bias[...]))
  for layer in parts.upper:
    h = np.tanh(h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]))
  return h, state


def head_weights(head, memory, old, reach):
  """One head's address in the words of the paper; `head` is [k, beta, g, s, gamma]."""
  key, beta, gate = np.tanh(head["k"]), softplus(head["beta"]), sigmoid(head["g"])
  kernel, gamma = softmax(head["s"]), 1 + softplus(head["gamma"])
  cosines = memory @ key / (np.linalg.norm(memory, axis=1) * np.linalg.norm(key) + 1e-8)
  mixed = gate * softmax(beta * cosines) + (1 - gate) * old
  moved = sum(kernel[o + reach] * np.roll(mixed, o) for o in range(-reach, reach + 1))
  return moved**gamma / (moved**gamma).sum()


def plain_ntm(ntm, x, row):
  """Outputs and last state of one row `x [T, D]`, a step at a time; `row` is the first state."""
  reads_n, heads_n = ntm.read_heads, ntm.read_heads + ntm.write_heads
  memory, reads = np.asarray(row.memory, np.float64), np.asarray(row.reads)
  w = list(np.concatenate([row.read_weights, row.write_weights]))
  state, outputs = [(np.asarray(s.h), np.asarray(s.c)) for s in row.controller], []
  controller = lstm if row.controller else mlp
  for x_t in np.asarray(x):
    h, state = controller(ntm.controller, x_t, reads.reshape(-1), state)
    p = np.clip(h @ np.asarray(ntm.heads.kernel[...]) + np.asarray(ntm.heads.bias[...]), -20, 20)
    names, parts, at = ("k", "beta", "g", "s", "gamma", "e", "a"), {}, 0
    for name, (count, size) in zip(names, ntm._fields(), strict=True):
      parts[name] = p[at : at + count * size].reshape(count, size)
      at += count * size
    each = [{n: parts[n][i] for n in names[:5]} for i in range(heads_n)]
    w = [head_weights(head, memory, old, ntm.shift) for head, old in zip(each, w, strict=True)]
    before = memory
    for weights, erase in zip(w[reads_n:], parts["e"], strict=True):
      memory = memory * (1 - np.outer(weights, sigmoid(erase)))
    for weights, add in zip(w[reads_n:], parts["a"], strict=True):
      memory = memory + np.outer(weights, np.tanh(add) if ntm.tanh else add)
    seen = before if ntm.read_before_write else memory
    reads = np.stack([weights @ seen for weights in w[:reads_n]])
    features = np.concatenate([h, reads.reshape(-1)])
    y = features @ np.asarray(ntm.out.kernel[...]) + np.asarray(ntm.out.bias[...])
    outputs.append(np.clip(y, -20, 20))
  return np.stack(outputs), memory, np.stack(w)


@pytest.mark.parametrize(
  "options",
  [
    {"start": "learned"},
    {"read_before_write": False, "read_heads": 2, "write_heads": 2, "shift": 2, "layers": 2},
    {"controller": "mlp", "layers": 2, "start": "random", "shift": 0},
  ],
)
def test_equals_the_plain_restatement(options):
  ntm, x = make(**options), inputs()
  first = ntm.init_state(2)
  y, last = run(ntm, x, first)
  for b in range(2):
    row = jax.tree.map(lambda a, b=b: a[b], first)
    expected, memory, weights = plain_ntm(ntm, x[b], row)
    np.testing.assert_allclose(y[b], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.memory[b], memory, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last.read_weights[b], weights[: ntm.read_heads], atol=1e-5)
    np.testing.assert_allclose(last.write_weights[b], weights[ntm.read_heads :], atol=1e-5)


def steer(ntm, **fields):
  """The same machine with heads that ignore the controller: constant raw parameters by name."""
  bias, names = [], ("k", "beta", "g", "s", "gamma", "e", "a")
  for name, (count, size) in zip(names, ntm._fields(), strict=True):
    value = jnp.asarray(fields.get(name, 0.0), jnp.float32)
    bias.append(jnp.broadcast_to(value, (count, size)).reshape(-1))
  ntm.heads.kernel[...] = jnp.zeros_like(ntm.heads.kernel[...])
  ntm.heads.bias[...] = jnp.concatenate(bias)
  return ntm


def one_hot_start(ntm, slot):
  ntm.first_weights[...] = 100.0 * jax.nn.one_hot(jnp.full(ntm.first_weights.shape[0], slot), 6)
  return ntm


STILL = {"g": -20, "s": [-20, 20, -20], "gamma": -20}  # stay where the last step was


def test_content_alone_finds_the_nearest_slot():
  ntm = steer(make(start="learned"), k=[1, -1, 2, 0], beta=20, g=20, s=[-20, 20, -20], gamma=20)
  memory = np.asarray(ntm.init_state(1).memory[0])
  cosines = memory @ np.tanh([1, -1, 2, 0]) / np.linalg.norm(memory, axis=1)
  _, state = run(ntm, inputs(1, 1), ntm.init_state(1))
  np.testing.assert_allclose(state.read_weights[0, 0], np.eye(6)[cosines.argmax()], atol=1e-3)


def test_a_head_steps_by_one_and_wraps_around():
  ntm = one_hot_start(steer(make(), g=-20, s=[-20, -20, 20], gamma=-20), 3)
  state = ntm.init_state(1)
  for slot in (4, 5, 0, 1):
    _, state = run(ntm, inputs(1, 1), state)
    np.testing.assert_allclose(state.read_weights[0, 0], np.eye(6)[slot], atol=1e-5)


def test_a_step_with_gate_closed_is_an_exact_roll():
  ntm = steer(make(), g=-20, s=[20, -20, -20], gamma=-20)
  before = ntm.init_state(2)
  _, after = run(ntm, inputs(2, 1), before)
  np.testing.assert_allclose(after.write_weights, np.roll(before.write_weights, -1, -1), atol=1e-5)


def test_full_erase_writes_the_added_vector_exactly():
  ntm = one_hot_start(steer(make(start="learned"), **STILL, e=20, a=[1, -1, 0.5, 0]), 2)
  before = ntm.init_state(1)
  _, after = run(ntm, inputs(1, 1), before)
  expected = before.memory.at[0, 2].set(jnp.tanh(jnp.asarray([1, -1, 0.5, 0])))
  np.testing.assert_allclose(after.memory, expected, atol=1e-6)


def test_no_erase_and_no_add_leaves_the_memory():
  ntm = steer(make(start="learned"), e=-20, a=0)
  before = ntm.init_state(2)
  _, after = run(ntm, inputs(), before)
  np.testing.assert_allclose(after.memory, before.memory, atol=1e-6)


def test_weights_are_distributions_at_every_step():
  ntm = make(read_heads=2)
  state, x = ntm.init_state(2), 5 * inputs(2, 20)
  for t in range(20):
    _, state = run(ntm, x[:, t : t + 1], state)
    weights = jnp.concatenate([state.read_weights, state.write_weights], axis=1)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_equal_slots_stay_equal_without_a_position_to_tell_them_apart():
  ntm = make(shift=0)
  ntm.first_weights[...] = jnp.zeros_like(ntm.first_weights[...])
  _, state = run(ntm, inputs(2, 20), ntm.init_state(2))
  np.testing.assert_array_equal(state.memory, jnp.tile(state.memory[:, :1], (1, 6, 1)))
  assert jnp.abs(state.memory).max() > 0.01


def test_the_first_state_follows_its_options():
  assert (make().init_state(2).memory == np.float32(1e-6)).all()
  assert (make(start="constant").init_state(2).memory == np.float32(1e-6)).all()
  trained = {start: set(split(make(start=start))[0]) for start in ("constant", "trained", "random")}
  assert trained["trained"] - trained["constant"] == {"first_memory"}
  assert trained["random"] == trained["constant"]
  drawn = make(start="random")
  np.testing.assert_allclose(drawn.init_state(1).memory[0], jnp.tanh(drawn.first_memory[...]))
  assert jnp.abs(make(learned_start=True).init_state(1).controller[0].h).max() > 0


def test_gradients_reach_everything_that_starts_a_row():
  ntm = make(start="trained", learned_start=True)

  @jax.jit
  @jax.grad
  def loss(ntm):
    y, _ = run(ntm, inputs(), ntm.init_state(2))
    return jnp.sum(jnp.square(y))

  grads = loss(ntm)
  chex.assert_tree_all_finite(grads)
  zero = [name for name, g in split(grads)[0].items() if not jnp.abs(g).max() > 0]
  assert zero == []


def test_half_precision_in_and_out_with_a_float32_state():
  ntm = make()
  y, state = run(ntm, inputs().astype(jnp.bfloat16), ntm.init_state(2))
  exact, _ = run(ntm, inputs(), ntm.init_state(2))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


def test_every_array_names_its_axes():
  ntm = make(learned_start=True, start="learned", layers=2)
  assert axes(ntm.init_state(2)).memory == ("batch", "slots", "memory")
  assert set(variable_axes(ntm)) == set(split(ntm)[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 0}, "slots=0"),
    ({"width": 2.0}, "width=2.0"),
    ({"read_heads": 0}, "read_heads=0"),
    ({"controller": "gru"}, "controller='gru' is not one of 'lstm', 'mlp'"),
    ({"start": "zeros"}, "start='zeros' is not one of"),
    ({"shift": 3}, "shift=3 must be an integer from 0 to 2 with slots=6"),
    ({"shift": -1}, "shift=-1"),
    ({"controller": "mlp", "learned_start": True}, "learned_start=True needs controller='lstm'"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_calls_are_named():
  ntm = make()
  with pytest.raises(ValueError, match=r"dim=3"):
    ntm(jnp.zeros((2, 5, 4)), ntm.init_state(2))
  with pytest.raises(ValueError, match="state was made for batch 3, x has batch 2"):
    ntm(inputs(), ntm.init_state(3))
  with pytest.raises(TypeError, match="floating"):
    ntm(jnp.zeros((2, 5, 3), jnp.int32), ntm.init_state(2))
