"""What memories measure of their use: right numbers for every layer, nothing where nobody asks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import channel, replace
from memjax.core.usage import Mean, measure, measure_slots, measured
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import EndToEndMemoryNetwork, NeuralTuringMachine
from memjax.transformer import Attention, Stack

NTM = functools.partial(NeuralTuringMachine, slots=5, width=3, hidden=4)
ATTENTION = functools.partial(Attention, heads=1, span="span")
RMT = functools.partial(
  RecurrentMemoryTransformer,
  body=functools.partial(Stack, pattern=(ATTENTION,)), segment=4, memory=2,
)  # fmt: skip


def usage(fn, *args):
  """(outputs, `{path: {name: value}}`) of a call."""

  @jax.jit
  def run(*args):
    with channel.collect(measure=True) as frame:
      out = fn(*args)
    return out, measured(frame.emitted)

  out, means = run(*args)
  return out, {p: {n: float(m.value) for n, m in names.items()} for p, names in means.items()}


def call(model, x, **flags):
  return model(x, model.init_state(len(x)), **flags)


def inputs(length=8, dim=6, rows=2):
  return jax.random.normal(jax.random.key(0), (rows, length, dim))


def test_means_count_what_is_valid():
  values = jnp.array([[[1.0, 3.0], [9.0, 9.0]], [[5.0, 7.0], [0.0, 4.0]]])
  valid = jnp.array([[True, False], [True, True]])
  with channel.collect(measure=True) as frame:
    measure("a", values, valid)
    measure("a", jnp.ones(4))
  (means,) = measured(frame.emitted).values()
  assert means["a"].count == 10
  np.testing.assert_allclose(means["a"].value, (1 + 3 + 5 + 7 + 0 + 4 + 4) / 10)
  assert Mean(jnp.float32(0), jnp.float32(0)).value == 0


def test_how_weights_over_slots_are_spread():
  """One row looks at one slot all the time, the other at each of four in turn."""
  one = jnp.tile(jax.nn.one_hot(2, 4), (4, 1))
  weights = jnp.stack([one, jnp.eye(4)])[:, :, None]
  with channel.collect(measure=True) as frame:
    measure_slots(read=weights)
    measure_slots(half=weights, valid=jnp.arange(4)[None] < jnp.array([[4], [2]]))
    measure_slots(flat=jnp.full((1, 3, 2, 8), 1 / 8))
  (means,) = measured(frame.emitted).values()
  value = lambda name: float(means[name].value)  # noqa: E731
  np.testing.assert_allclose(value("read_peak"), 1)
  np.testing.assert_allclose(value("slots_read"), (1 / 4 + 1) / 2, rtol=1e-6)
  np.testing.assert_allclose(value("slots_half"), (1 / 4 + 2 / 4) / 2, rtol=1e-6)
  np.testing.assert_allclose(value("flat_peak"), 1 / 8)
  np.testing.assert_allclose(value("slots_flat"), 1, rtol=1e-6)


def test_nobody_asks_nothing_is_computed():
  """A collector that does not measure, as in training, gets the program it got before."""
  x = inputs()
  for model in (NTM(6, rngs=nnx.Rngs(0)), RMT(6, rngs=nnx.Rngs(0))):

    def plain(model, x):
      with channel.collect() as frame:
        y, _ = call(model, x)
      assert not any(isinstance(value, Mean) for value in frame.emitted.values())
      return y

    def asked(model, x):
      with channel.collect(measure=True) as frame:
        y, _ = call(model, x)
      assert measured(frame.emitted)
      return y

    bare = jax.make_jaxpr(lambda model, x: call(model, x)[0])(model, x)
    np.testing.assert_array_equal(jax.jit(asked)(model, x), jax.jit(plain)(model, x))
    count = lambda jaxpr, word: str(jaxpr).count(word)  # noqa: E731
    collected = jax.make_jaxpr(plain)(model, x)
    for word in ("reduce_max", " log ", "reduce_sum", "sqrt"):
      assert count(bare, word) == count(collected, word), word


def test_a_turing_machine_equals_its_states_step_by_step():
  model, x = NTM(6, read_heads=2, rngs=nnx.Rngs(0)), inputs()
  valid = jnp.arange(8)[None] < jnp.array([[8], [5]])
  _, found = usage(lambda m, x: call(m, x, valid=valid), model, x)
  state, reads, writes = model.init_state(2), [], []
  step = jax.jit(model.__call__)
  for t in range(8):
    _, state = step(x[:, t : t + 1], state)
    reads.append(state.read_weights)
    writes.append(state.write_weights)
  kept = np.asarray(valid)
  reads, writes = (np.stack(w, axis=1) for w in (reads, writes))  # [B, T, heads, N]
  got = found[""]
  np.testing.assert_allclose(got["read_peak"], reads.max(-1)[kept].mean(), rtol=1e-5)
  np.testing.assert_allclose(got["written_peak"], writes.max(-1)[kept].mean(), rtol=1e-5)
  mass = (writes * kept[:, :, None, None]).sum((1, 2))
  p = mass / mass.sum(-1, keepdims=True)
  expected = np.exp(-(p * np.log(p)).sum(-1)).mean() / 5
  np.testing.assert_allclose(got["slots_written"], expected, rtol=1e-5)


def test_stacked_layers_stand_apart_whatever_loop_is_inside():
  """Machines, and RMTs over segments, stacked: each layer's numbers are those of that layer run
  alone on what it received."""
  x = inputs()
  for memory in (NTM, RMT):
    stack = Stack(6, pattern=(memory,), repeats=3, rngs=nnx.Rngs(1))
    _, found = usage(call, stack, x)
    assert sorted(p for p in found if "/" not in p) == ["0", "1", "2"]
    h, key = x, next(iter(stack.layers))
    for depth in range(3):
      layer = jax.tree.map(lambda a, depth=depth: a[depth], stack.layers[key])
      own = h if layer.norm is None else layer.norm(h)
      (y, _), alone = usage(call, layer.memory, own)
      h = y if layer.norm is None else h + y
      assert alone[""].keys() == found[str(depth)].keys()
      for name, value in alone[""].items():
        np.testing.assert_allclose(found[str(depth)][name], value, rtol=1e-4, err_msg=name)


def test_memory_tokens_from_segment_to_segment():
  model, x = RMT(6, rngs=nnx.Rngs(0)), inputs(12)
  _, found = usage(call, model, x)
  state, norms, changes = model.init_state(2), [], []
  step = jax.jit(model.__call__)
  for start in range(0, 12, 4):
    old = state.memory
    _, state = step(x[:, start : start + 4], state)
    norms.append(np.linalg.norm(state.memory, axis=(1, 2)) / 2**0.5)
    changes.append(
      np.linalg.norm(state.memory - old, axis=(1, 2)) / np.linalg.norm(old, axis=(1, 2))
    )
  np.testing.assert_allclose(found[""]["norm"], np.mean(norms), rtol=1e-5)
  np.testing.assert_allclose(found[""]["change"], np.mean(changes), rtol=1e-5)


def test_attention_of_a_memory_network_by_hop():
  """Its calls over sentences and its `answer` measure the same; the linear start has no shares."""
  net = EndToEndMemoryNetwork(9, 4, slots=4, words=2, hops=2, rngs=nnx.Rngs(0))
  sentences = jax.random.randint(jax.random.key(0), (2, 5, 2), 1, 9)
  state = net.write(sentences[:, :4], net.init_state(2))
  asked, found = usage(lambda net, q: net.read(q, state), net, sentences[:, 4])
  (y, _), again = usage(lambda net, q: net(q, state), net, sentences[:, 4:])
  assert sorted(found) == sorted(again) == ["hop0", "hop1"]
  np.testing.assert_allclose(y[:, 0], asked, rtol=1e-5, atol=1e-6)
  for hop, names in found.items():
    for name, value in names.items():
      np.testing.assert_allclose(again[hop][name], value, rtol=1e-5)
      assert 1 / 4 <= value <= 1
  assert (
    usage(lambda net, q: net.read(q, state), replace(net, linear=True), sentences[:, 4])[1] == {}
  )
