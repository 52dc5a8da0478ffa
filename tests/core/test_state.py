"""States: axes by name, rows selected and moved by name, also where layers are stacked and L ==
B."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.core import (
  Axes,
  Stateless,
  as_state,
  axes,
  batch_size,
  detach,
  leaf,
  put_rows,
  select,
  state_bytes,
  take_rows,
)
from memjax.core.state import stack_depths, stack_key


@as_state
class Slots:
  memory: jax.Array = leaf("slots", "memory")
  length: jax.Array = leaf()


@as_state
class Nested:
  inner: Any
  layers: dict[str, Any]


def slots(batch, layers=None):
  front = () if layers is None else (layers,)
  memory = jnp.arange(np.prod((*front, batch, 3, 2)), dtype=jnp.float32)
  length = jnp.arange(np.prod((*front, batch)), dtype=jnp.int32)
  return Slots(memory.reshape((*front, batch, 3, 2)), length.reshape((*front, batch)))


def nested(batch, layers):
  stacked = {"0+2x" + str(layers): slots(batch, layers), "9": slots(batch)}
  return Nested(inner=(slots(batch), Stateless()), layers=stacked)


def test_axes_are_named_also_under_a_stack():
  named = axes(nested(2, 2))
  assert named.inner[0].memory == Axes(("batch", "slots", "memory"))
  assert named.layers["9"].length == ("batch",)
  assert named.layers["0+2x2"].memory == ("layers", "batch", "slots", "memory")


def test_an_undeclared_array_is_refused():
  @as_state
  class Forgotten:
    memory: Any

  with pytest.raises(TypeError, match="Forgotten.memory.*leaf"):
    axes(Forgotten(jnp.zeros((2, 3))))


def test_select_picks_rows_not_layers_when_both_are_two():
  old = nested(2, 2)
  new = jax.tree.map(lambda a: a + 100, old)
  chosen = select(jnp.array([True, False]), new, old)
  stacked = chosen.layers["0+2x2"].memory
  np.testing.assert_array_equal(stacked[:, 0], new.layers["0+2x2"].memory[:, 0])
  np.testing.assert_array_equal(stacked[:, 1], old.layers["0+2x2"].memory[:, 1])
  np.testing.assert_array_equal(chosen.inner[0].length, [100, 1])


def test_select_keeps_nan_out():
  poisoned = jax.tree.map(
    lambda a: jnp.full_like(a, jnp.nan), Slots(jnp.ones((2, 3, 2)), jnp.ones(2))
  )
  clean = Slots(jnp.ones((2, 3, 2)), jnp.ones(2))
  chosen = select(jnp.array([True, True]), clean, poisoned)
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(chosen))


def test_take_and_put_rows():
  state = nested(3, 2)
  taken = take_rows(state, jnp.array([2, 2, 0, 1]))
  np.testing.assert_array_equal(
    taken.layers["0+2x2"].memory[:, 0], state.layers["0+2x2"].memory[:, 2]
  )
  assert batch_size(taken) == 4
  back = put_rows(state, jnp.array([0, 7]), take_rows(state, jnp.array([2, 1])))
  np.testing.assert_array_equal(back.layers["9"].memory[0], state.layers["9"].memory[2])
  np.testing.assert_array_equal(back.layers["9"].memory[1:], state.layers["9"].memory[1:])


def test_a_row_out_of_range_is_never_another_row():
  taken = take_rows(slots(2), jnp.array([5]))
  assert np.isnan(taken.memory).all()


def test_batch_size_and_bytes():
  assert batch_size(Stateless()) is None
  assert batch_size(nested(3, 2)) == 3
  assert state_bytes(slots(2)) == 2 * 3 * 2 * 4 + 2 * 4
  with pytest.raises(ValueError, match=r"different batch sizes: \[2, 3\]"):
    batch_size(Slots(jnp.zeros((2, 3, 2)), jnp.zeros(3)))


def test_detach_stops_the_gradient():
  grad = jax.grad(lambda m: jnp.sum(detach(Slots(m, jnp.zeros(1))).memory ** 2))(
    jnp.ones((1, 3, 2))
  )
  np.testing.assert_array_equal(grad, 0)


def test_stack_keys():
  assert stack_key(1, 2, 3) == "1+2x3"
  assert stack_depths("1+2x3") == (1, 3, 5)
  assert stack_depths("values") is None and stack_depths("12") is None
