"""Least recently used access against a restatement of public code, and what it must do."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Replay, axes, join, split
from memjax.core.module import variable_axes
from memjax.slots import LRUAMemory

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "lrua.npz")
SMALL = {"slots": 5, "width": 3, "heads": 1, "hidden": 4}


def make(**options):
  return LRUAMemory(3, **(SMALL | options), rngs=nnx.Rngs(0))


@jax.jit
def run(memory, x, state):
  return memory(x, state)


def inputs(batch=2, length=5):
  return jax.random.normal(jax.random.key(1), (batch, length, 3))


# ---- the public code


def gates(a):
  """The LSTM's gates are f, i, o, u there and i, f, g, o here."""
  return a.reshape(*a.shape[:-1], 4, -1)[..., (1, 0, 3, 2), :].reshape(a.shape)


def ours(v):
  """Our parameters that hold that code's variables (or gradients)."""
  flat = lambda w: np.moveaxis(w, 0, 1).reshape(w.shape[1], -1)  # noqa: E731
  kinds = ("key", "add", "sigma")
  return {
    "controller/inner/0/kernel": gates(v["xh"]),
    "controller/inner/0/bias": gates(v["b_h"]),
    "controller/recurrent/0/kernel": gates(np.concatenate([v["rh"], v["hh"]])),
    "numbers/kernel": np.concatenate([flat(v[f"W_{k}"]) for k in kinds], axis=1),
    "numbers/bias": np.concatenate([v[f"b_{k}"].reshape(-1) for k in kinds]),
    "out/kernel": v["W_o"],
    "out/bias": v["b_o"],
  }


def under(prefix):
  return {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN if name.startswith(prefix)}


def assert_close(got, expected, name):
  """Equal to 1e-5 of the largest entry."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["heads", "one"])
def test_equals_the_public_code_and_its_gradients(case):
  slots, width = GOLDEN[f"{case}/state/memory"].shape[1:]
  remat = {"one": None, "heads": Replay(every=4, steps=False)}[case]
  heads = GOLDEN[f"{case}/state/reads"].shape[1]
  model = make(out=2, slots=slots, width=width, heads=heads, remat=remat)
  params, rest = split(model)
  values, weights = ours(under(f"{case}/v/")), under(f"{case}/weights/")
  assert set(params) == set(values)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(given):
    model = join(given["params"], rest)
    y, state = model(given["x"], model.init_state(2))
    parts = {name: getattr(state, name) for name in ("memory", "usage", "read_weights", "reads")}
    parts |= {"h": state.controller[0].h, "c": state.controller[0].c, "y": y}
    return sum(jnp.sum(parts[name] * weights[name]) for name in weights), parts

  given = {"params": jax.tree.map(jnp.asarray, values), "x": jnp.asarray(GOLDEN[f"{case}/x"])}
  (_, parts), grads = loss(given)
  assert_close(parts.pop("y"), GOLDEN[f"{case}/y"], "y")
  for name, value in parts.items():
    assert_close(value, GOLDEN[f"{case}/state/{name}"], name)
  assert_close(grads["x"], GOLDEN[f"{case}/d/x"], "x")
  for name, expected in ours(under(f"{case}/d/")).items():
    assert_close(grads["params"][name], expected, name)


# ---- what it must do


class Machine:
  """One row that does what it is told; keys of zeros read all slots alike."""

  def __init__(self, **options):
    self.memory = make(**options)
    state = self.memory.init_state(1)
    self.state = dataclasses.replace(state, memory=jnp.swapaxes(state.memory, 1, 2))
    self.access = jax.jit(lambda *args: self.memory.access(*args))

  def do(self, row, *, key=0.0, gate=-200.0):
    """Write weights `[R, N]` of one step; the gate is raw: -200 writes to unused slots only."""
    heads, width = self.memory.heads, self.memory.width
    vectors = [jnp.broadcast_to(jnp.asarray(a, jnp.float32), (1, heads, width)) for a in (key, row)]
    self.state, write = self.access(*vectors, jnp.full((1, heads), gate), self.state)
    return write[0]


def test_writes_go_around_in_the_order_of_least_recent_use():
  machine = Machine()
  slots = [int(machine.do(float(t)).argmax()) for t in range(12)]
  assert slots == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]  # slot 0 counts as used at first


def test_what_is_read_is_not_overwritten():
  """Slot 2 alone is read, at every step: all the others are rewritten, it is not."""
  machine = Machine()
  item = jnp.asarray([1.0, 0, 0])
  machine.do([0.0, 1, 0])
  machine.do(item)
  kept = machine.state.memory[0, :, 2]
  slots = []
  for _ in range(9):
    machine.state = dataclasses.replace(
      machine.state, usage=machine.state.usage + jax.nn.one_hot(jnp.asarray([2]), 5)
    )
    slots.append(int(machine.do([0.0, 0, 1]).argmax()))
  assert set(slots) == {0, 1, 3, 4}
  np.testing.assert_array_equal(machine.state.memory[0, :, 2], kept)


def test_usage_decays_and_counts_reads_and_writes():
  machine = Machine(heads=2)
  machine.do(1.0)
  before = machine.state.usage
  write = machine.do(2.0, key=1.0, gate=0.3)
  gained = machine.state.read_weights[0].sum(0) + write.sum(0)
  np.testing.assert_allclose(
    machine.state.usage - gained[None], 0.95 * before, rtol=1e-6, atol=1e-7
  )


def test_the_least_used_slot_holds_the_write_of_this_step_alone():
  machine = Machine(heads=2)
  for row in (5.0, 6.0, 7.0):
    machine.do(row, gate=0.5)
  usage, rows = machine.state.usage[0], jnp.asarray([[1.0, 2, 3], [-4, 5, 6]])
  least, second = np.argsort(usage, kind="stable")[:2]
  before = machine.state.memory[0, :, second]
  write = machine.do(rows, gate=0.5)
  memory = machine.state.memory[0]
  np.testing.assert_allclose(memory[:, least], write[:, least] @ rows, rtol=1e-6)
  np.testing.assert_allclose(memory[:, second], before + write[:, second] @ rows, rtol=1e-6)


def test_an_open_gate_writes_where_the_last_read_was():
  machine = Machine()
  machine.do([0.0, 1, 0], key=[0.0, 3, 0])
  read = machine.state.read_weights[0]
  np.testing.assert_allclose(machine.do(1.0, gate=200.0), read, atol=1e-6)


def test_a_read_sees_the_write_of_its_own_step():
  machine = Machine()
  slot = int(machine.do([0.0, 0, 2], key=[0.0, 0, 2])[0].argmax())
  e = np.exp(np.arange(5) == slot)  # no strength: cosines are 1 and 0
  np.testing.assert_allclose(machine.state.read_weights[0, 0], e / e.sum(), atol=1e-2)


def test_keys_are_what_is_written_if_asked():
  model = make(write_value="key")
  assert model.numbers.kernel.shape == (4, 3 + 1)
  closed = model.numbers.bias[...].at[3].set(-200)
  model.numbers.bias[...] = closed
  _, state = run(model, inputs(1, 1), model.init_state(1))
  h = state.controller[0].h[0]
  key = jnp.tanh(h @ model.numbers.kernel[...][:, :3])
  np.testing.assert_allclose(state.memory[0, 1], key, atol=1e-6)


def test_slots_differ_after_a_few_steps():
  model = make()
  _, state = run(model, inputs(), model.init_state(2))
  gaps = jnp.abs(state.memory[:, :, None] - state.memory[:, None]).max(-1) + jnp.eye(5)[None]
  assert gaps.min() > 1e-4


def test_every_array_names_its_axes():
  model = make()
  assert axes(model.init_state(2)).memory == ("batch", "slots", "memory")
  assert set(variable_axes(model)) == set(split(model)[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 0}, "slots=0"),
    ({"heads": 6}, "heads=6 must be at most slots=5"),
    ({"decay": 1.0}, "decay=1.0 must lie in"),
    ({"write_value": "both"}, "write_value='both' is not one of 'separate', 'key'"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_calls_are_named():
  model = make()
  with pytest.raises(ValueError, match=r"dim=3"):
    model(jnp.zeros((2, 5, 4)), model.init_state(2))
