"""Training steps whose tables train by touched rows: as dense ones do, and in no more memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.training import (
  Checkpoints,
  fit,
  init_train_state,
  language_model_loss,
  make_optimizer,
  make_train_step,
  table_names,
  tables,
)
from memjax.transformer import LanguageModel, Stack
from tests.training.sparse import SIZES, batch, language_model, own, segments
from tests.training.tiny import same_bits, tiny

LOSS = language_model_loss()


def start(model, optimizer, freeze=None):
  return init_train_state(model, optimizer, key=jax.random.key(3), freeze=freeze)


def train(model, optimizer, steps=3, accumulate=1):
  state, metrics = start(model, optimizer), {}
  step = make_train_step(LOSS, optimizer, accumulate=accumulate)
  for number in range(steps):
    state, metrics = step(state, batch(number))
  return state, metrics


@pytest.mark.parametrize(
  ("body", "accumulate"), [("layers share a pool", 1), ("layers in segments", 2)]
)
def test_steps_are_those_of_dense_training(body, accumulate):
  """SGD leaves rows alone that have no gradient, so it needs no touch of all of them."""
  model = language_model(body)
  by_rows = tables.WithTables(optax.sgd(0.5), tables.sgd(0.5), table_names(model))
  got, numbers = train(model, by_rows, accumulate=accumulate)
  wanted, expected = train(model, optax.sgd(0.5), accumulate=accumulate)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  assert set(got.params) == set(wanted.params)
  jax.tree.map(near, got.params, wanted.params)
  for name in ("loss", "grad_norm", "count"):
    near(numbers[name], expected[name])
  assert numbers["finite"]


def scaled_loss(model, memory, batch, key):
  out = LOSS(model, memory, batch, key)
  return dataclasses.replace(out, total=out.total * batch["scale"])


def scaled(number: int, scale: float = 1.0) -> dict:
  return {**batch(number), "scale": np.float32(scale)}


@pytest.mark.parametrize("tables_alone", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(tables_alone):
  """A loss that is NaN, and one that is finite with a gradient whose square is not."""
  freeze = (lambda name: not name.endswith("table")) if tables_alone else None
  model = language_model()
  optimizer = make_optimizer(
    model, learning_rate=0.1, tables="lazy_catch_up", decay_tables=True, table_clip=1.0,
    freeze=freeze,
  )  # fmt: skip
  step = make_train_step(scaled_loss, optimizer)
  state, metrics = step(start(model, optimizer, freeze), scaled(0))
  assert metrics["finite"]
  before = jax.tree.map(jnp.copy, (state.params, state.opt_state))
  for bad in (scaled(9, np.nan), scaled(9, 1e25)):
    state, metrics = step(state, bad)
    assert not metrics["finite"] and not np.isfinite(metrics["grad_norm"])
    assert same_bits((state.params, state.opt_state), before)
  state, metrics = step(state, scaled(1))
  assert metrics["finite"] and not same_bits(state.params, before[0])


def mixed_model() -> LanguageModel:
  """Own float32 tables in a scan, and a bfloat16 pool that is rounded at random."""
  read = functools.partial(MemoryPlus, top_k=2, values="pool", **SIZES)
  body = functools.partial(Stack, pattern=[own, read], repeats=2)
  pool = functools.partial(value_pool, SIZES["keys"] ** 2, 4, param_dtype=jnp.bfloat16)
  return LanguageModel(7, 4, body=body, shared={"pool": pool}, rngs=nnx.Rngs(0))


class Numbered:
  """The endless batches 1, 2, ..."""

  def __init__(self):
    self.count = 0

  def __next__(self):
    self.count += 1
    return batch(self.count)

  def get_state(self):
    return {"count": self.count}

  def set_state(self, state):
    self.count = state["count"]


def test_a_resumed_run_is_bit_for_bit_the_same(tmp_path):
  model = jax.jit(mixed_model)()
  optimizer = make_optimizer(
    model, learning_rate=0.1, tables="lazy_catch_up", decay_tables=True, table_clip=1.0
  )
  step = make_train_step(LOSS, optimizer)
  run = functools.partial(fit, step_fn=step)
  whole = run(start(model, optimizer), batches=Numbered(), steps=4)
  for steps in (2, 4):
    with Checkpoints(tmp_path) as checkpoints:
      cut = run(start(model, optimizer), batches=Numbered(), steps=steps, checkpoints=checkpoints)
  assert whole.step == cut.step == 4
  assert same_bits(whole.state.params, cut.state.params)
  assert same_bits(whole.state.opt_state, cut.state.opt_state)
  assert whole.state.params["shared/pool"].dtype == jnp.bfloat16
  rows = cut.state.opt_state["tables"].rows
  assert {name: rows[name]["last"].max() for name in rows} == dict.fromkeys(rows, 4)


def wide(body, dim: int = 32) -> LanguageModel:
  """Tables of 2 x 65,536 x 32 (16 MB) in a scan, of which 128 rows at most are read."""
  return LanguageModel(7, dim, body=body, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("form", ["lazy_catch_up", "rowwise_adagrad"])
def test_a_step_makes_no_array_of_a_tables_size(form):
  big = functools.partial(ProductKeyMemory, keys=256, heads=2, top_k=2, query_dim=4)
  stack = functools.partial(Stack, pattern=[big], repeats=2, remat="full")
  model = jax.eval_shape(lambda: wide(segments(stack, remat="full")))
  optimizer = make_optimizer(
    model, learning_rate=0.1, tables=form, decay_tables=True, table_clip=1.0
  )
  state = jax.eval_shape(lambda m: start(m, optimizer), model)
  step = make_train_step(LOSS, optimizer, accumulate=2)
  memory = step.lower(state, batch()).compile().memory_analysis()
  (name,) = table_names(model)
  table = state.params[name]
  size = table.size * table.dtype.itemsize
  held = size + sum(a.size * 4 for a in state.opt_state["tables"].rows[name].values())
  assert size == 16 * 2**20
  assert memory.alias_size_in_bytes > held  # changed in place
  assert memory.temp_size_in_bytes < size / 4


@pytest.mark.parametrize("form", ["lazy", "rowwise_adam", "rowwise_adagrad", "sgd"])
def test_forms_by_name(form):
  model = language_model()
  optimizer = make_optimizer(model, learning_rate=0.1, tables=form)
  assert isinstance(optimizer, tables.WithTables)
  assert optimizer.names == table_names(model)
  before = {name: np.array(a) for name, a in start(model, optimizer).params.items()}
  state, metrics = train(model, optimizer, steps=1)
  assert metrics["finite"]
  for name, a in state.params.items():
    assert not np.array_equal(a, before[name]), name


def test_the_tables_have_their_own_rate_and_decay():
  """Against AdamW in two groups, dense: after one step, rows that were touched agree."""
  model = language_model()
  options = {
    "learning_rate": 0.1, "table_learning_rate": 0.7, "weight_decay": 0.2, "table_clip": 0.01,
    "decay_tables": True,
  }  # fmt: skip
  dense, _ = train(model, make_optimizer(model, **options), steps=1)
  state, _ = train(model, make_optimizer(model, tables="lazy", **options), steps=1)
  for name, wanted in dense.params.items():
    touched = np.ones(wanted.shape[:-1], bool)
    if name in table_names(model):
      touched = np.asarray(state.opt_state["tables"].rows[name]["v"]).any(-1)
      assert 0 < touched.sum() < touched.size
    got, wanted = np.asarray(state.params[name])[touched], np.asarray(wanted)[touched]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_is_dense_stays_a_plain_optax_optimiser():
  model = tiny()
  assert not isinstance(make_optimizer(model, learning_rate=0.1), tables.WithTables)
  no_tables = make_optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), learning_rate=0.1, tables="lazy")
  assert not isinstance(no_tables, tables.WithTables)
  freeze = lambda name: name == "table"  # noqa: E731
  frozen = make_optimizer(model, learning_rate=0.1, tables="lazy", freeze=freeze)
  assert not isinstance(frozen, tables.WithTables)
  own = make_optimizer(model, learning_rate=0.1, tables=tables.sgd(0.1))
  assert isinstance(own, tables.WithTables) and own.names == {"table"}
  with pytest.raises(ValueError, match="tables='sparse' is not one of 'dense', 'lazy', .*'sgd'"):
    make_optimizer(model, learning_rate=0.1, tables="sparse")
  with pytest.raises(ValueError, match=r"\['pool'\] are not among the trained parameters"):
    tables.WithTables(optax.sgd(1.0), tables.sgd(1.0), frozenset(["pool"])).init({})
