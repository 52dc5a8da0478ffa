"""The Differentiable Neural Computer against its authors' computation, and what it must do."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Replay, axes, join, split, state_bytes
from memjax.core.module import variable_axes
from memjax.slots import DifferentiableNeuralComputer

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "dnc.npz")
SMALL = {"slots": 5, "width": 3, "read_heads": 2, "hidden": 5}


def make(**options):
  return DifferentiableNeuralComputer(3, **(SMALL | options), rngs=nnx.Rngs(0))


@jax.jit
def run(dnc, x, state):
  return dnc(x, state)


def inputs(batch=2, length=5):
  return jax.random.normal(jax.random.key(1), (batch, length, 3))


# ---- the authors' computation

# Ours by the authors' names; the LSTM's gates are i, j, f, o there and i, f, j, o here.
NAMES = {
  "write_vector": "write_vectors", "erase": "erase_vectors", "write_key": "write_keys",
  "write_strength": "write_strengths", "read_key": "read_keys", "read_strength": "read_strengths",
}  # fmt: skip


def gates(a, hidden):
  return a.reshape(*a.shape[:-1], 4, hidden)[..., (0, 2, 1, 3), :].reshape(a.shape)


def ours(dnc, variables):
  """Our parameters that hold the authors' variables (or gradients)."""
  kernel = gates(variables["lstm/w_gates"], dnc.controller.hidden)
  heads = {end: [] for end in ("w", "b")}
  for name in dnc._fields():
    for end, parts in heads.items():
      parts.append(variables[f"{NAMES.get(name, name)}/{end}"])
  return {
    "controller/inner/0/kernel": kernel[: dnc.dim],
    "controller/inner/0/bias": gates(variables["lstm/b_gates"], dnc.controller.hidden),
    "controller/recurrent/0/kernel": kernel[dnc.dim :],
    "heads/kernel": np.concatenate(heads["w"], axis=-1),
    "heads/bias": np.concatenate(heads["b"], axis=-1),
    "out/kernel": variables["output_linear/w"],
    "out/bias": variables["output_linear/b"],
  }


def under(prefix):
  return {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN if name.startswith(prefix)}


def assert_close(got, expected, name):
  """Equal to 1e-5 of the largest entry."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["one", "two"])
def test_equals_the_authors_computation_and_its_gradients(case):
  slots, width = GOLDEN[f"{case}/state/memory"].shape[1:]
  reads, writes = (GOLDEN[f"{case}/state/{n}_weights"].shape[1] for n in ("read", "write"))
  dnc = make(
    out=2, slots=slots, width=width, read_heads=reads, write_heads=writes, strength="softplus",
    clip={"one": 20.0, "two": 0.6}[case],
    remat={"one": None, "two": Replay(every=4, steps=False)}[case],
  )  # fmt: skip
  values = ours(dnc, under(f"{case}/v/"))
  forget = np.repeat([0, 1, 0, 0], 5)  # there a constant, here a part of the bias
  values["controller/inner/0/bias"] = values["controller/inner/0/bias"] + forget
  weights = under(f"{case}/weights/")

  def named(state):
    fields = ("memory", "usage", "read_weights", "write_weights", "reads")
    found = {name: getattr(state, name) for name in fields}
    found |= {"link": state.links.link, "precedence": state.links.precedence}
    return found | {"h": state.controller[0].h, "c": state.controller[0].c}

  params, rest = split(dnc)
  assert set(params) == set(values)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(given):
    model = join(given["params"], rest)
    y, state = model(given["x"], model.init_state(2))
    parts = named(state) | {"y": y}
    return sum(jnp.sum(parts[name] * weights[name]) for name in weights), parts

  given = {"params": {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}}
  given["x"] = jnp.asarray(GOLDEN[f"{case}/x"])
  (_, parts), grads = loss(given)
  assert_close(parts.pop("y"), GOLDEN[f"{case}/y"], "y")
  for name, value in parts.items():
    assert_close(value, GOLDEN[f"{case}/state/{name}"], name)
  assert_close(grads["x"], GOLDEN[f"{case}/d/x"], "x")
  for name, expected in ours(dnc, under(f"{case}/d/")).items():
    assert_close(grads["params"][name], expected, name)


# ---- what it must be able to do

WRITE = {"allocation_gate": 20.0, "write_gate": 20.0, "erase": 20.0, "free_gate": -20.0}
STILL = {"allocation_gate": 20.0, "write_gate": -20.0, "free_gate": -20.0}
ITEMS = 2 * jnp.eye(3)


class Machine:
  """One row, one read head, that does what it is told: `do(WRITE, write_vector=item)`."""

  def __init__(self, **options):
    self.dnc = make(read_heads=1, **options)
    state = self.dnc.init_state(1)
    self.state = dataclasses.replace(state, memory=jnp.swapaxes(state.memory, 1, 2))
    self.access = jax.jit(lambda fields, state: self.dnc.access(fields, state))

  def do(self, *given, mode=None, key=None, **fields):
    """One step with these raw numbers (zero for others); the read vector `[W]`."""
    if key is not None:
      fields |= {"read_key": key, "read_strength": 50.0}
    if mode is not None and self.dnc.use_link:
      fields["read_mode"] = 50.0 * jnp.asarray(
        [n == mode for n in ("backward", "forward", "content")]
      )
    for each in given:
      fields |= each
    raw = {
      name: jnp.broadcast_to(jnp.asarray(fields.get(name, 0.0), jnp.float32), (1, *shape))
      for name, shape in self.dnc._fields().items()
    }
    self.state = self.access(raw, self.state)
    return self.state.reads[0, 0]


def close(got, expected):
  return np.allclose(got, expected, atol=1e-3)


def filled(**options):
  machine = Machine(**options)
  for item in ITEMS:
    machine.do(WRITE, write_vector=item)
  return machine


def test_items_come_back_in_the_order_in_which_they_were_written():
  machine = filled()
  assert close(machine.do(STILL, mode="content", key=ITEMS[0]), ITEMS[0])
  assert close(machine.do(STILL, mode="forward"), ITEMS[1])
  assert close(machine.do(STILL, mode="forward"), ITEMS[2])
  assert close(machine.do(STILL, mode="backward"), ITEMS[1])
  assert close(machine.do(STILL, mode="backward"), ITEMS[0])


def test_without_links_the_same_reads_fail():
  machine = filled(use_link=False)
  assert close(machine.do(STILL, mode="content", key=ITEMS[0]), ITEMS[0])
  assert not close(machine.do(STILL, mode="forward"), ITEMS[1])


def test_order_of_writes_does_not_depend_on_where_slots_lie():
  """Three slots are written, then the first of them again: it is the last one now."""
  machine = filled()
  again = WRITE | {"allocation_gate": -20.0, "write_key": ITEMS[0], "write_strength": 50.0}
  machine.do(again, write_vector=-ITEMS[0])
  assert close(machine.do(STILL, mode="content", key=ITEMS[2]), ITEMS[2])
  assert close(machine.do(STILL, mode="forward"), -ITEMS[0])
  assert close(machine.do(STILL, mode="backward"), ITEMS[2])
  assert close(machine.do(STILL, mode="backward"), ITEMS[1])


def test_a_read_sees_the_write_of_its_own_step():
  machine = Machine()
  assert close(machine.do(WRITE, write_vector=ITEMS[1], mode="content", key=ITEMS[1]), ITEMS[1])


def test_a_slot_that_was_read_and_freed_is_the_next_one_written():
  machine = filled(slots=3)
  np.testing.assert_allclose(machine.state.usage[0].sum(), 2, atol=1e-4)  # before the third write
  machine.do(STILL, mode="content", key=ITEMS[1])
  place = int(jnp.argmax(machine.state.read_weights))
  np.testing.assert_allclose(machine.state.usage, 1, atol=1e-4)
  new = jnp.asarray([1.0, 1, 1])
  machine.do(WRITE | {"free_gate": 20.0}, write_vector=new)
  np.testing.assert_allclose(machine.state.usage[0], 1 - np.eye(3)[place], atol=1e-4)
  np.testing.assert_allclose(machine.state.write_weights[0, 0], np.eye(3)[place], atol=1e-4)
  np.testing.assert_allclose(machine.state.memory[0, :, place], new, atol=1e-4)


def test_write_heads_take_different_free_slots():
  machine = Machine(write_heads=2)
  machine.do(WRITE, write_vector=ITEMS[:2])
  first, second = jnp.argmax(machine.state.write_weights[0], axis=-1)
  assert first != second
  np.testing.assert_allclose(machine.state.write_weights[0].max(-1), 1, atol=1e-4)
  np.testing.assert_allclose(machine.state.memory[0, :, first], ITEMS[0], atol=1e-4)
  np.testing.assert_allclose(machine.state.memory[0, :, second], ITEMS[1], atol=1e-4)
  np.testing.assert_array_equal(machine.state.usage, 0)  # that of before the write


def test_a_closed_write_gate_leaves_memory_and_links():
  machine = filled()
  before = machine.state
  machine.do(STILL, write_vector=ITEMS[0], erase=20.0)
  for got, was in zip(jax.tree.leaves((machine.state.memory, machine.state.links)),
                      jax.tree.leaves((before.memory, before.links)), strict=True):  # fmt: skip
    np.testing.assert_allclose(got, was, atol=1e-6)


def test_invariants_hold_at_every_step():
  dnc = make(write_heads=2)
  dnc.heads.kernel[...] = 8 * dnc.heads.kernel[...]  # decided heads
  state, x, written = dnc.init_state(2), 5 * inputs(2, 24), 0.0
  for t in range(24):
    _, state = run(dnc, x[:, t : t + 1], state)
    link, most = state.links.link, 1 + 1e-5
    assert all((leaf >= -1e-6).all() for leaf in (state.usage, state.read_weights, link))
    assert (state.write_weights >= 0).all() and (state.usage <= most).all()
    for sums in (state.read_weights, state.write_weights, state.links.precedence, link):
      assert (sums.sum(-1) <= most).all()
    assert (link.sum(-2) <= most).all()
    assert (jnp.diagonal(link, axis1=2, axis2=3) == 0).all()
    written = max(written, float(state.write_weights.sum(-1).max()))
  assert written > 0.5  # else nothing was put to the test


def test_back_propagation_keeps_one_link_matrix_a_token():
  dnc = make(slots=7)
  kept = jax.eval_shape(
    lambda x: jax.vjp(lambda x: dnc(x, dnc.init_state(2))[0], x)[1], inputs(2, 9)
  )
  matrices = [a.shape for a in jax.tree.leaves(kept) if a.shape[-2:] == (7, 7) and a.size >= 9 * 49]
  assert matrices == [(9, 2, 1, 7, 7)]


def test_without_links_the_state_grows_with_the_slots_only():
  sizes = [state_bytes(make(slots=n, use_link=False).init_state(1)) for n in (8, 16, 24)]
  assert sizes[2] - sizes[1] == sizes[1] - sizes[0]
  assert make(use_link=False).init_state(2).links == ()


def test_oneplus_strengths_are_at_least_one():
  a, b = Machine(strength="oneplus"), Machine(strength="softplus")
  for machine in (a, b):
    machine.do(WRITE, write_vector=ITEMS[0])
    machine.do(STILL, mode="content", read_key=ITEMS[0], read_strength=-50.0)
  np.testing.assert_allclose(b.state.read_weights[0, 0], 1 / 5, atol=1e-4)
  e = np.exp([1.0, 0, 0, 0, 0])
  np.testing.assert_allclose(a.state.read_weights[0, 0], e / e.sum(), atol=1e-3)


def test_every_array_names_its_axes():
  dnc = make(layers=2)
  assert axes(dnc.init_state(2)).links.link == ("batch", "memory", "slots", "slots")
  assert set(variable_axes(dnc)) == set(split(dnc)[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 0}, "slots=0"),
    ({"write_heads": 1.0}, "write_heads=1.0"),
    ({"clip": 0}, "clip=0 must be greater than 0"),
    ({"strength": "exp"}, "strength='exp' is not one of 'oneplus', 'softplus'"),
    ({"remat": "some"}, "remat='some' is not one of"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_calls_are_named():
  dnc = make()
  with pytest.raises(ValueError, match=r"dim=3"):
    dnc(jnp.zeros((2, 5, 4)), dnc.init_state(2))
  with pytest.raises(ValueError, match="state was made for batch 3, x has batch 2"):
    dnc(inputs(), dnc.init_state(3))
