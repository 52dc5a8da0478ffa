"""The Relational Memory Core against a re-statement of the authors' code, and its properties."""

import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Replay, axes, join, split
from memjax.core.module import variable_axes
from memjax.slots import RelationalMemory

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "rmc.npz"
SMALL = {"slots": 3, "heads": 2, "head_size": 2}


def make(**options):
  given: dict[str, Any] = SMALL | options
  return RelationalMemory(3, **given, rngs=nnx.Rngs(0))


@jax.jit
def run(memory, x, state):
  return memory(x, state)


def inputs(batch=2, length=5, dim=3):
  return jax.random.normal(jax.random.key(1), (batch, length, dim))


@pytest.mark.golden
@pytest.mark.parametrize(
  ("name", "dim", "options"),
  [
    ("unit", 3, {"slots": 2, "heads": 2, "head_size": 2}),
    ("memory", 4, {"slots": 3, "heads": 1, "head_size": 3, "key_size": 2, "blocks": 2, "rows": 2}),
  ],
)
def test_equals_the_authors_code(name, dim, options):
  golden = {k[len(name) + 1 :]: a for k, a in np.load(GOLDEN).items() if k.startswith(name)}
  memory = RelationalMemory(dim, gate=name, project=False, **options, rngs=nnx.Rngs(0))
  drawn, rest = split(memory)
  params = {k: jnp.asarray(golden[f"value|{k}"]) for k in drawn}
  x, weights = jnp.asarray(golden["value|x"]), golden["weights"]

  def loss(params, x):
    memory = join(params, rest)
    y, state = memory(x, memory.init_state(x.shape[0]))
    return jnp.sum(y * weights), (y, state)

  (_, (y, state)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
  np.testing.assert_allclose(y, golden["y"], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(state.memory.reshape(y[:, -1].shape), y[:, -1])
  for key, grad in (grads[0] | {"x": grads[1]}).items():
    expected = golden[f"grad|{key}"]
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_gates_at_their_ends_keep_or_replace():
  memory = make()
  before = run(memory, inputs(), memory.init_state(2))[1]
  kept = make(input_bias=-float("inf"), forget_bias=float("inf"))
  np.testing.assert_array_equal(run(kept, inputs(), before)[1].memory, before.memory)
  replaced, ungated = (
    make(input_bias=float("inf"), forget_bias=-float("inf")),
    make(gate=None),
  )
  shared = split(ungated)[0]  # the same numbers but for the gates
  drawn, rest = split(replaced)
  replaced = join(drawn | shared, rest)
  one = inputs(length=1)
  expected = jnp.tanh(run(ungated, one, before)[1].memory)
  np.testing.assert_allclose(run(replaced, one, before)[1].memory, expected, rtol=1e-6)


def test_slots_differ_after_a_step_and_equal_ones_stay_equal():
  memory = make()
  _, state = run(memory, inputs(length=1), memory.init_state(2))
  apart = jnp.abs(state.memory[:, :, None] - state.memory[:, None]).max(-1)
  assert (apart + jnp.eye(3)[None]).min() > 0.05
  same = type(state)(jnp.ones_like(state.memory))
  _, state = run(memory, inputs(), same)
  np.testing.assert_allclose(state.memory, jnp.tile(state.memory[:, :1], (1, 3, 1)), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"gate": "memory", "blocks": 2}])
def test_permuted_slots_give_a_permuted_memory(options):
  memory, order = make(**options), jnp.asarray([2, 0, 1])
  state = type(memory.init_state(1))(jax.random.normal(jax.random.key(3), (2, 3, 4)))
  _, plain = run(memory, inputs(), state)
  _, turned = run(memory, inputs(), type(state)(state.memory[:, order]))
  np.testing.assert_allclose(turned.memory, plain.memory[:, order], rtol=1e-5, atol=1e-5)


def test_the_memory_grows_by_at_most_one_a_step():
  memory, x = make(forget_bias=1e9, input_bias=1e9), 10 * inputs(length=20)
  first = memory.init_state(2)
  y, _ = run(make(forget_bias=1e9, input_bias=1e9, project=False), x, first)
  y = y.reshape(2, 20, 3, 4)
  steps = jnp.diff(jnp.concatenate([first.memory[:, None], y], axis=1), axis=1)
  assert jnp.abs(steps).max() <= 1 + 1e-5
  assert jnp.abs(y).max() > 3  # nothing is forgotten here


def test_attention_reaches_every_slot_and_the_input():
  memory = make(gate=None)
  state = memory.init_state(1)
  one = inputs(1, 1)

  def first_slot(slots, x):  # one number: all together, normalised, sum to nothing
    return memory(x, type(state)(slots))[1].memory[0, 0, 0]

  by_memory, by_x = jax.jit(jax.grad(first_slot, (0, 1)))(state.memory, one)
  assert (jnp.abs(by_memory[0]).max(-1) > 0).all() and jnp.abs(by_x).max() > 0


def test_gradients_reach_every_parameter_and_remat_keeps_them():
  def grads(**options):
    memory = make(blocks=2, **options)

    @jax.jit
    @jax.grad
    def loss(memory):
      return jnp.sum(jnp.square(memory(inputs(length=6), memory.init_state(2))[0]))

    return split(loss(memory))[0]

  plain = grads()
  chex.assert_tree_all_finite(plain)
  assert [name for name, g in plain.items() if not jnp.abs(g).max() > 0] == []
  chex.assert_trees_all_close(plain, grads(remat=Replay(every=3)), rtol=1e-4, atol=1e-5)


def test_half_precision_in_and_out_with_a_float32_state():
  memory = make()
  y, state = run(memory, inputs().astype(jnp.bfloat16), memory.init_state(2))
  exact, _ = run(memory, inputs(), memory.init_state(2))
  assert y.dtype == jnp.bfloat16 and state.memory.dtype == jnp.float32
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)


def test_shapes_axes_and_the_first_state():
  memory = make(out=5)
  y, state = run(memory, inputs(), memory.init_state(2))
  assert y.shape == (2, 5, 5) and axes(state).memory == ("batch", "slots", "memory")
  np.testing.assert_array_equal(memory.init_state(1).memory[0], jnp.eye(3, 4))
  assert set(variable_axes(memory)) == set(split(memory)[0])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 0}, "slots=0"),
    ({"head_size": 2.0}, "head_size=2.0"),
    ({"key_size": 0}, "key_size=0"),
    ({"blocks": 0}, "blocks=0"),
    ({"mlp_layers": 0}, "mlp_layers=0"),
    ({"gate": "slot"}, "gate='slot' is not one of 'unit', 'memory', None"),
    ({"rows": 2}, "rows=2 does not divide dim=3"),
    ({"remat": "dots"}, "remat='dots'"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
