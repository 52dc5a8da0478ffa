"""What `memjax.inspect` records is what the memories did, whatever loops they ran in."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax import inspect, slots
from memjax.core import channel
from memjax.core.replay import Replay
from memjax.core.usage import traced
from memjax.parametric import ProductKeyMemory
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import addressing
from memjax.transformer import Attention, Stack

partial, DIM = functools.partial, 6
NTM = partial(slots.NeuralTuringMachine, slots=5, width=3, hidden=4)
ENCODER = partial(Stack, pattern=[partial(Attention, heads=1), partial(slots.SlotRead, heads=2)],
                  repeats=2)  # fmt: skip
TOKENS = {  # fed token by token
  "ntm": partial(NTM, read_heads=2, remat=Replay(every=2, steps=False)),
  "dnc": partial(slots.DifferentiableNeuralComputer, slots=5, width=3, hidden=4, read_heads=2),
  "lrua": partial(slots.LRUAMemory, slots=5, width=3, hidden=4, heads=2),
  "stack": partial(Stack, pattern=[NTM], repeats=2),
}
SEGMENTS = {  # fed segment by segment
  "memformer": partial(slots.Memformer, encoder=ENCODER, segment=4, slots=3, heads=2),
  "rmt": partial(RecurrentMemoryTransformer, body=partial(Stack, pattern=[NTM]), segment=4,
                 memory=1, causal_memory=True),
}  # fmt: skip
OTHERS = {
  "elmur": partial(slots.ELMUR, heads=2, segment=4, slots=2),
  "rmc": partial(slots.RelationalMemory, slots=2, heads=2, head_size=3, blocks=2),
  "lm2": partial(slots.LM2, heads=2, segment=4, slots=3),
  "pointer": partial(slots.PointerMixtureNetwork, vocab=4, window=3, hidden=4),
  "keys": partial(ProductKeyMemory, keys=4, heads=2, top_k=2, query_dim=4),
}
T = 12


def inputs(length=T):
  return jnp.asarray(np.random.default_rng(0).standard_normal((2, length, DIM)), jnp.float32)


@functools.cache
def memory(name):
  make = (TOKENS | SEGMENTS | OTHERS)[name]
  return jax.jit(lambda: make(DIM, rngs=nnx.Rngs(0)))()


@functools.cache
def whole(name):
  """The trace of one call."""
  return inspect.record(memory(name), inputs())


@functools.cache
def pieces(name):
  """The traces of calls of one token, or of one segment, from state to state."""
  size, x = 4 if name in SEGMENTS else 1, inputs()
  state, found = memory(name).init_state(2), []
  for start in range(0, T, size):
    found.append(inspect.record(memory(name), x[:, start : start + size], state))
    state = found[-1].output[1]
  return found


def states(name):
  return [memory(name).init_state(2), *(trace.output[1] for trace in pieces(name))]


def over_time(name, pick):
  return np.stack([pick(state) for state in states(name)[1:]], axis=1)


def close(got, expected, **why):
  np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6, **why)


@pytest.mark.parametrize("name", [*TOKENS, *SEGMENTS])
def test_calls_in_pieces_record_the_same(name):
  """Whatever loop is inside: what one call records is what many calls record, one after another."""
  assert all(whole(name).keys() == trace.keys() for trace in pieces(name)) and whole(name)
  for key, array in whole(name).items():
    close(array, np.concatenate([trace[key] for trace in pieces(name)], axis=1), err_msg=key)


def test_a_turing_machine_writes_as_recorded():
  """Addresses are those of the states; erasing and adding at them makes the states' memories."""
  trace = whole("ntm")
  close(trace["read"], over_time("ntm", lambda s: s.read_weights))
  close(trace["written"], over_time("ntm", lambda s: s.write_weights))
  memories = [jnp.swapaxes(state.memory, 1, 2) for state in states("ntm")]
  for t in range(3):
    did = (jnp.asarray(trace[name][:, t]) for name in ("written", "erase", "add"))
    close(addressing.erase_add(memories[t], *did), memories[t + 1])
  assert trace["strength"].shape == trace["gate"].shape == (2, T, 3)
  close(trace["shift"].sum(-1), np.ones((2, T, 3)))
  assert (trace["sharpness"] >= 1).all() and (trace["gate"] < 1).all()


def test_a_neural_computer_links_as_recorded():
  trace = whole("dnc")
  for name, pick in {
    "read": lambda s: s.read_weights, "written": lambda s: s.write_weights,
    "usage": lambda s: s.usage, "link": lambda s: s.links.link,
    "precedence": lambda s: s.links.precedence,
  }.items():  # fmt: skip
    close(trace[name], over_time("dnc", pick), err_msg=name)
  close(trace["read_mode"].sum(-1), np.ones((2, T, 2)))
  assert (trace["written"].sum(-1) <= trace["write_gate"] + 1e-6).all()
  assert trace["free_gate"].shape == (2, T, 2)
  assert trace["allocation_gate"].shape == (2, T, 1)


def test_least_used_slots_as_recorded():
  trace = whole("lrua")
  close(trace["read"], over_time("lrua", lambda s: s.read_weights))
  usage = over_time("lrua", lambda s: s.usage)
  close(trace["usage"], usage)
  used = trace["read"].sum(2) + trace["written"].sum(2)
  close(usage[:, 1:], 0.95 * usage[:, :-1] + used[:, 1:])
  assert trace["gate"].shape == (2, T, 2)


def test_layers_of_a_stack_stand_apart():
  for layer in range(2):
    expected = over_time("stack", lambda s, i=layer: s.layers["0+1x2"].write_weights[i])
    close(whole("stack")[f"{layer}/written"], expected)


def test_a_segment_memory_as_recorded():
  """Two empty slots are filled, then the oldest is blended."""
  trace = whole("elmur")
  np.testing.assert_array_equal(trace["times"][0], [[3, -1], [3, 7], [11, 7]])
  np.testing.assert_array_equal(trace["times"][:, -1], trace.output[1].slots.written)
  close(trace["written"][0, :, 0], [[1, 0], [0, 1], [memory("elmur").blend, 0]])


def test_names_and_axes():
  shapes = {name: {k: a.shape[1:] for k, a in whole(name).items()} for name in SEGMENTS | OTHERS}
  assert shapes["memformer"] == {"1/read": (T, 2, 3), "3/read": (T, 2, 3), "kept": (3, 3, 2)}
  assert shapes["elmur"] == {"read": (T, 2, 2), "written": (3, 1, 2), "times": (3, 2)}
  assert shapes["rmt"]["change"] == (3,) and shapes["rmt"]["0/read"] == (T + 3 * 2, 1, 5)
  assert shapes["lm2"] == {
    "read": (T, 2, 3), "output_gate": (T, DIM), "input_gate": (3, 3, DIM),
    "forget_gate": (3, 3, DIM), "attention": (3, 2, 3, 4),
  }  # fmt: skip
  assert shapes["rmc"] == {
    "attention": (T, 2, 3, 3), "attention.1": (T, 2, 2, 3), "input_gate": (T, 2, 6),
    "forget_gate": (T, 2, 6),
  }  # fmt: skip
  assert shapes["pointer"] == {"read": (T, 1, 3), "switch": (T,)}
  assert shapes["keys"] == {"slot_ids": (T, 4), "slot_weights": (T, 4)}
  for weights in (whole("rmc")["attention"], whole("lm2")["attention"], whole("lm2")["read"]):
    close(weights.sum(-1), np.ones(weights.shape[:-1]))
  switch, read = whole("pointer")["switch"], whole("pointer")["read"]
  probabilities = np.exp(whole("pointer").output[0])
  close(switch[:, 0], np.ones(2))
  close((1 - switch)[..., None] * read[:, :, 0], probabilities[..., 4:], err_msg="copied")


def test_hops_of_stores():
  """Methods are recorded like calls; empty slots are not read."""
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(1, 9, (2, 3, 2)), jnp.int32)
  make = partial(slots.EndToEndMemoryNetwork, 9, 4, slots=4, words=2, hops=2)
  store = jax.jit(lambda: make(rngs=nnx.Rngs(0)))()
  state = jax.jit(store.write)(ids, store.init_state(2))
  trace = inspect.record(store.read, ids[:, 0], state)
  assert trace.output.shape == (2, 9)
  again = inspect.record(store, ids[:, :1], state)
  assert list(trace) == list(again) == ["hop0/read", "hop1/read"]
  for hop in trace:
    assert trace[hop].shape == (2, 1, 1, 4)
    close(trace[hop], again[hop])
    close(trace[hop][..., :3].sum(-1), np.ones((2, 1, 1)))


def test_slots_that_a_question_chose():
  make = partial(slots.KeyValueMemoryNetwork, 9, 4, key_words=1, slots=4, select=2)
  pairs = jax.jit(lambda: make(rngs=nnx.Rngs(0)))()
  ids = jnp.asarray([[[3, 1], [5, 2], [3, 4]]])  # slots of the key 3: the last and the first
  trace = inspect.record(pairs.read, ids[:, 0, :1], pairs.write(ids, pairs.init_state(1)))
  np.testing.assert_array_equal(trace["chosen"], [[[0, 2]]])
  close(trace["hop0/read"].sum(), 1)


def test_one_compilation_and_inside_a_jit():
  whole("ntm")
  before = inspect._recorded._cache_size()
  inspect.record(memory("ntm"), inputs() + 1)
  assert inspect._recorded._cache_size() == before

  @jax.jit
  def mine(memory, x):
    with channel.collect(trace=True) as frame:
      memory(x, memory.init_state(2))
    return traced(frame.emitted)["read"]

  close(mine(memory("ntm"), inputs()), whole("ntm")["read"])


def test_some_names_only():
  trace = inspect.record(memory("memformer"), inputs(), only=("read",))
  assert list(trace) == ["1/read", "3/read"]
  close(trace["3/read"], whole("memformer")["3/read"])


def test_nobody_records_nothing_is_traced():
  """What is trained or measured hands out no array."""
  for options, some in (({}, False), ({"measure": True}, False), ({"trace": True}, True)):
    with channel.collect(**options) as frame:
      jax.eval_shape(lambda x: memory("dnc")(x, memory("dnc").init_state(2)), inputs())
    assert any(isinstance(a, channel.Traced) for a in frame.emitted.values()) == some
    assert bool(frame.emitted) == bool(options)


def test_pictures():
  trace = whole("dnc")
  figure = inspect.figure({"x": inputs(), **trace}, ["x", "read", "usage", "link"],
                          tokens=slice(2, 6))  # fmt: skip
  titles = [axes.get_title(loc="left") for axes in figure.axes]
  assert titles == ["x", "read 0", "read 1", "usage", "link"]
  image = lambda i: figure.axes[i].images[0]  # noqa: E731
  np.testing.assert_array_equal(image(2).get_array(), trace["read"][0, 2:6, 1].T)
  assert image(2).get_extent() == [1.5, 5.5, -0.5, 4.5]
  np.testing.assert_array_equal(image(4).get_array(), trace["link"][0, 5, 0])
  figure.canvas.draw()
  line = inspect.figure({"a": inputs()[..., 0]}, row=1).axes[0].lines[0]
  np.testing.assert_array_equal(line.get_ydata(), inputs()[1, :, 0])


def test_what_is_asked_wrongly():
  assert "written: [2, 12, 1, 5]" in repr(whole("ntm"))
  with pytest.raises(KeyError, match="'link'; the trace has add, erase, gate, read"):
    whole("ntm")["link"]
  with pytest.raises(ValueError, match="0 panels, of nothing"):
    inspect.figure({})
  with pytest.raises(ValueError, match=r"33 panels, of a\[1, 2, 33, 4\]"):
    inspect.figure({"a": np.zeros((1, 2, 33, 4))})


def test_matplotlib_is_an_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(ImportError, match=r"pip install 'memjax\[inspect\]'"):
    inspect.figure({"a": np.zeros((1, 3))})
