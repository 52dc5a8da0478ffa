"""Gradients of tables as touched rows against the dense ones of plain differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.core import Stateless, channel, split
from memjax.training import language_model_loss, table_names
from memjax.training.tables import Touches, value_and_grad
from memjax.training.tables.touches import owner
from tests.training.sparse import BODIES, batch, language_model

LOSS = language_model_loss()


def gradients(body, names=()):
  params, rest = split(language_model(body))
  run = jax.jit(value_and_grad(LOSS, names))
  (total, out), grads = run(params, rest, Stateless(), batch(), jax.random.key(1))
  assert total == out.total
  return params, float(total), grads


@pytest.mark.parametrize("body", BODIES)
def test_touched_rows_are_the_dense_gradient(body):
  names = table_names(language_model(body))
  params, total, grads = gradients(body, names)
  _, dense_total, dense = gradients(body)
  np.testing.assert_allclose(total, dense_total, rtol=1e-6)
  assert set(grads) == set(dense) and names
  for name, wanted in dense.items():
    got = grads[name]
    if name in names:
      assert isinstance(got, Touches) and np.abs(wanted).max() > 0
      got = got.merged().dense(got.rows).reshape(params[name].shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_only_the_tables_that_are_named_leave_as_rows():
  body = "two tables a layer"
  (up,) = [name for name in table_names(language_model(body)) if name.endswith("up")]
  _, _, grads = gradients(body, [up])
  assert [name for name, g in grads.items() if isinstance(g, Touches)] == [up]


def test_norms_merge_equal_ids_first():
  _, _, grads = gradients("layers share a pool", ["shared/pool"])
  touches = grads["shared/pool"]
  rows = touches.merged().rows
  assert touches.ids.shape[0] == 3 * 8 and touches.ids.shape[1] == 6  # bags of 4 and of 6
  square = float(jax.jit(Touches.squared_norm)(touches))
  np.testing.assert_allclose(square, jnp.sum(jnp.square(rows)), rtol=1e-5)
  assert square < float(touches.bound()) ** 2
  assert touches.where(jnp.bool_(False)).merged().count == 0
  np.testing.assert_allclose(touches.scaled(0.5).merged().rows, 0.5 * rows, rtol=1e-6)


def test_the_bound_looks_away_from_padding_alone():
  ids, weights = jnp.array([[0, 1], [9, 9]]), jnp.ones((2, 2))
  bound = lambda v: float(Touches(ids, weights, jnp.array(v), 9).bound())  # noqa: E731
  assert bound([[3.0, 4.0], [np.nan, 0.0]]) == 10
  assert np.isnan(bound([[np.nan, 4.0], [1.0, 0.0]]))


def test_the_table_of_a_lookup():
  names = [
    "body/layers/0+1x2/memory/values/table", "body/layers/2/memory/values/table",
    "body/layers/2/memory/down", "shared/table", "table",
  ]  # fmt: skip
  assert owner("touch:table", names) == "table"
  assert owner("0+1x2/touch:table.1.2", names) == names[0]
  assert owner("2/touch:down", names) == names[2]
  assert owner("2/touch:shared:table.1", names) == "shared/table"
  assert owner("touch:shared:of the caller", names) is None
  with pytest.raises(ValueError, match=r"layer 2 has the label 'up', of which there are 0"):
    owner("2/touch:up", names)
  with pytest.raises(ValueError, match=r"'down', of which there are 2 .*2/memory/down'.*2/other"):
    owner("2/touch:down", [*names, "other/layers/2/other/down"])


def test_lookups_that_cannot_hand_out_their_gradient_are_refused():
  """An open segment reads its memory tokens inside a cond."""
  model = language_model("layers in segments")
  params, rest = split(model)
  short = {name: a[:, :1] for name, a in batch().items()}
  run = value_and_grad(LOSS, table_names(model))
  with pytest.raises(ValueError, match="touch:table is read inside a cond"):
    run(params, rest, Stateless(), short, jax.random.key(0))


def test_a_collector_inside_another_hands_on_what_it_hears():
  with channel.collect({"a/x": jnp.ones(2)}) as outer:
    with channel.scope("a"), channel.collect() as inner:
      channel.emit("x", 1)
      assert channel.tap("x", (2,)).tolist() == [1, 1]
    with channel.collect({}) as own:
      channel.emit("y", 2)
  assert (inner.emitted, outer.emitted, own.emitted) == ({"x": 1}, {"a/x": 1}, {"y": 2})


def test_tables_of_a_scan_know_their_layer():
  _, _, grads = gradients("a scan over layers", table_names(language_model()))
  (touches,) = [g for g in grads.values() if isinstance(g, Touches)]
  ids = np.asarray(touches.ids).reshape(2, 8, -1)
  real = ids[0][ids[0] < touches.rows], ids[1][ids[1] < touches.rows]
  assert touches.rows == 32 and real[0].max() < 16 <= real[1].min()
