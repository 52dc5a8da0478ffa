"""One step: what it changes, what a bad one leaves alone, and gradients in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from memjax.core import Stateless, flatten, join, split
from memjax.parametric import ProductKeyMemory
from memjax.training import (
  init_train_state,
  language_model_loss,
  make_optimizer,
  make_train_step,
)
from memjax.transformer import LanguageModel, Stack
from tests.training.tiny import Batches, no_memory, same_bits, squares, tiny


@functools.cache
def adam():
  return make_optimizer(tiny(), learning_rate=0.1)


@functools.cache
def step_in(parts: int):
  return make_train_step(squares, adam(), accumulate=parts)


def start(memory=None, **options):
  return init_train_state(tiny(), adam(), key=jax.random.key(3), memory=memory, **options)


def copy(tree):
  return jax.tree.map(jnp.copy, tree)


def test_a_step_against_plain_jax():
  """Gradients of the mean by `jax.grad`, update by optax, noise from fold_in(key, step)."""
  state, batch = start(no_memory(4)), Batches().at(1)
  params, rest, opt_state = copy((state.params, state.rest, state.opt_state))
  key = jax.random.fold_in(jax.random.key(3), 0)

  def mean(params):
    return squares(join(params, rest), None, batch, key).total / batch["valid"].sum()

  loss, grads = jax.jit(jax.value_and_grad(mean))(params)
  update, _ = jax.jit(adam().update)(grads, opt_state, params)
  new, metrics = step_in(1)(state, batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
  wanted = optax.apply_updates(params, update)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, wanted)
  assert same_bits(new.rest, rest)
  assert (int(new.step), int(new.skipped), int(metrics["count"])) == (1, 0, 3)
  assert not jnp.array_equal(new.memory.total, 0)


def test_noise_differs_from_step_to_step_and_not_from_run_to_run():
  batch = Batches().at(1)
  state, one = step_in(1)(start(), batch)
  _, two = step_in(1)(at_step(start(), 1), batch)
  _, again = step_in(1)(start(), batch)
  assert one["loss"] == again["loss"] != two["loss"]


def at_step(state, step):
  return jax.tree_util.tree_map_with_path(
    lambda path, a: jnp.int32(step) if path[0].name == "step" else a, state
  )


def test_the_model_stays_usable_and_the_state_is_donated():
  model, key, memory = tiny(), jax.random.key(3), no_memory(4)
  state = init_train_state(model, adam(), key=key, memory=memory)
  step_in(1)(state, Batches().at(1))
  assert state.params["table"].is_deleted() and state.memory.total.is_deleted()
  assert jnp.isfinite(model.table[...]).all() and jnp.isfinite(memory.total).all()
  assert jax.random.key_data(key).size


def bad_batch():
  return Batches(bad=[2]).at(2)


def huge_batch():
  """Finite loss, but squares of the gradient overflow: Adam's second moment would stay infinite."""
  batch = Batches().at(2)
  return {**batch, "y": np.full_like(batch["y"], 1e18), "x": batch["x"] * 1e3}


def test_without_a_copy_the_state_has_the_models_own_parameters():
  """The same step; none of them stands in memory twice, and the step takes them from the model."""
  model, batch = copy(tiny()), Batches().at(0)
  options = {"key": jax.random.key(3), "memory": no_memory(4)}
  state = init_train_state(model, adam(), copy=False, **options)
  arrays = split(model)[0]
  for name, array in state.params.items():
    assert array.unsafe_buffer_pointer() == arrays[name].unsafe_buffer_pointer()
  got, _ = step_in(1)(state, batch)
  want, _ = step_in(1)(start(no_memory(4)), batch)
  assert same_bits(got.params, want.params)
  assert all(arrays[name].is_deleted() for name in want.params)


@pytest.mark.parametrize("make", [bad_batch, huge_batch])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(make, parts):
  state, _ = step_in(parts)(start(no_memory(4)), Batches().at(1))
  before = copy((state.params, state.rest, state.opt_state, state.memory, state.key))
  for streak in (1, 2):
    state, metrics = step_in(parts)(state, make())
    assert not metrics["finite"] and metrics["streak"] == metrics["skipped"] == streak
  after = (state.params, state.rest, state.opt_state, state.memory, state.key)
  assert same_bits(after, before)
  assert int(state.step) == 3
  state, metrics = step_in(parts)(state, Batches().at(3))
  assert metrics["finite"] and (int(state.streak), int(state.skipped)) == (0, 2)
  assert not same_bits(state.params, before[0])


def test_nan_in_the_memory_alone_is_caught():
  """The loss looks away from the row; carried on, its NaN would never leave the run."""
  batch = Batches().at(4)  # row 0 does not count
  state = start(no_memory(4))
  before = copy(state.memory)
  batch["x"][0] = np.nan
  state, metrics = step_in(1)(state, batch)
  assert not metrics["finite"] and same_bits(state.memory, before)


def silent(model, memory, batch, key):
  return squares(model, memory, batch, None)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_in_parts_are_those_of_the_whole(parts):
  """Rows that do not count make the parts uneven: a mean of means would differ."""
  sgd, batch = optax.sgd(0.1), Batches(rows=8).at(3)
  batch["valid"] = np.array([True, False, True, True, True, False, True, False])
  results = []
  for accumulate in (1, parts):
    state = init_train_state(tiny(), sgd, key=jax.random.key(0), memory=no_memory(8))
    results.append(make_train_step(silent, sgd, accumulate=accumulate)(state, batch))
  (whole, numbers), (cut, cut_numbers) = results
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
  jax.tree.map(near, flatten(whole.params), flatten(cut.params))
  jax.tree.map(near, whole.memory, cut.memory)
  for name in ("loss", "count", "grad_norm"):
    near(numbers[name], cut_numbers[name])


def test_a_sharded_step_is_the_same_step():
  """Rows and memory over 8 devices, the table by its rows over 2, cut into 2 parts."""
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  rows, table = NamedSharding(mesh, P(("data", "model"))), NamedSharding(mesh, P("model"))
  batch = Batches(rows=16).at(3)
  state = start(no_memory(16))
  alone, numbers = step_in(2)(start(no_memory(16)), batch)

  def place(a):
    kind = {state.params["table"].shape: table, state.memory.total.shape: rows}
    return jax.device_put(a, kind.get(a.shape, NamedSharding(mesh, P())))

  state = jax.tree.map(place, state)
  state, sharded_numbers = step_in(2)(state, jax.device_put(batch, rows))
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
  jax.tree.map(near, state.params, alone.params)
  jax.tree.map(near, state.memory, alone.memory)
  near(numbers["grad_norm"], sharded_numbers["grad_norm"])
  assert state.params["table"].sharding.is_equivalent_to(table, 2)
  assert state.memory.total.sharding.is_equivalent_to(rows, 2)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="accumulate=3 does not divide the batch of 4 rows"):
    make_train_step(squares, adam(), accumulate=3)(start(), Batches().at(1))
  with pytest.raises(ValueError, match="accumulate=0"):
    make_train_step(squares, adam(), accumulate=0)


def test_an_untyped_key_is_refused():
  with pytest.raises(TypeError, match=r"jax\.random\.key"):
    init_train_state(tiny(), adam(), key=jax.random.PRNGKey(0))


def test_frozen_parameters_do_not_move():
  freeze = lambda name: name == "table"  # noqa: E731
  optimizer = make_optimizer(tiny(), learning_rate=0.1, freeze=freeze)
  state = init_train_state(tiny(), optimizer, key=jax.random.key(0), freeze=freeze)
  state, _ = make_train_step(squares, optimizer)(state, Batches().at(1))
  assert jnp.array_equal(state.model.table[...], tiny().table[...])
  assert not jnp.array_equal(
    state.model.cells["0+1x2"].scale[...], tiny().cells["0+1x2"].scale[...]
  )


@jax.jit
def keys_with_batch_norm():
  pattern = [functools.partial(ProductKeyMemory, keys=4, top_k=2, heads=1, query_norm="batch")]
  body = functools.partial(Stack, pattern=pattern, repeats=2)
  return LanguageModel(5, 4, body=body, rngs=nnx.Rngs(0))


def test_batch_statistics_are_written_and_a_bad_step_leaves_them():
  model, sgd = keys_with_batch_norm(), optax.sgd(0.1)
  ids = np.array([[0, 1, 2, 3], [4, 3, 2, 1]], np.int32)
  good = {"inputs": ids, "targets": ids}
  state = init_train_state(model, sgd, key=jax.random.key(0))
  assert isinstance(state.memory, Stateless)
  means = [name for name in state.rest.arrays if name.endswith("mean")]
  assert len(means) == 1 and not state.rest.arrays[means[0]].any()
  step = make_train_step(language_model_loss(), sgd, accumulate=2, momentum=0.5)
  state, metrics = step(state, good)
  mean = np.array(state.rest.arrays[means[0]])
  assert metrics["finite"] and np.abs(mean).min() > 0 and mean.shape[0] == 2
  before = copy(state.rest)
  state, metrics = step(state, {"inputs": ids, "targets": np.full_like(ids, 9)})
  assert not metrics["finite"] and same_bits(state.rest, before)
