"""Touched-row training of tables that are cut over a mesh: as on one device, each piece where it
lies."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx

from memjax.core.sharding import (
  DEFAULT_RULES,
  batch_sharding,
  init,
  make_mesh,
  shardings_of,
  table_sharding,
)
from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.training import init_train_state, language_model_loss, make_optimizer, make_train_step
from memjax.transformer import LanguageModel, Stack
from tests.core.collectives import found, shapes

DIM, VOCAB, KEYS, ROWS, LENGTH = 8, 7, 20, 8, 3
SIZES = {"keys": KEYS, "heads": 2, "query_dim": 4}
NONE = dict.fromkeys(DEFAULT_RULES)
LAYOUTS = {
  "columns": ({"d": 2, "m": 4}, NONE | {"batch": ("d", "m"), "value": "m"}),
  "columns-tensor": ({"d": 2, "m": 2}, NONE | {"batch": "d", "value": "m"}),
  "rows": ({"m": 4}, NONE | {"batch": "m", "rows": "m"}),
  "both": ({"r": 2, "c": 2}, NONE | {"batch": ("r", "c"), "rows": "r", "value": "c"}),
}


def stacked():
  """Layers in a scan, each with a table of its own."""
  layer = functools.partial(ProductKeyMemory, top_k=2, **SIZES)
  body = functools.partial(Stack, pattern=[layer], repeats=2, remat="full")
  return LanguageModel(VOCAB, DIM, body=body, rngs=nnx.Rngs(0))


def shared():
  """Two layers with bags of 4 and 6 slots that read one pool."""
  layers = [functools.partial(MemoryPlus, values="pool", top_k=k, **SIZES) for k in (2, 3)]
  pool = {"pool": functools.partial(value_pool, KEYS**2, DIM)}
  body = functools.partial(Stack, pattern=layers)
  return LanguageModel(VOCAB, DIM, body=body, shared=pool, rngs=nnx.Rngs(0))


def batches(sharding=None):
  rng = np.random.default_rng(0)
  for _ in range(2):
    inputs, targets = rng.integers(0, VOCAB, (2, ROWS, LENGTH)).astype(np.int32)
    batch = {"inputs": inputs, "targets": targets}
    yield batch if sharding is None else jax.device_put(batch, sharding)


def optimizer(model, tables):
  return make_optimizer(
    model, learning_rate=1e-2, eps=1e-4, table_clip=1e-3, tables=tables, decay_tables=True
  )


def trained(model, tables, accumulate, sharding=None):
  """The compiled step, the first state, and the state and metrics after two steps."""
  chosen = optimizer(model, tables)
  state = init_train_state(model, chosen, key=jax.random.key(0))
  at = None if sharding is None else shardings_of(state)
  step = make_train_step(language_model_loss(), chosen, accumulate=accumulate, shardings=at)
  compiled = step.lower(state, next(batches(sharding))).compile()
  where = jax.tree.map(lambda a: a.sharding, state.opt_state["tables"].rows)
  metrics = None
  for batch in batches(sharding):
    state, metrics = compiled(state, batch)
  return compiled, where, state, metrics


@functools.cache
def on_one_device(make, tables):
  *_, state, metrics = trained(jax.jit(make)(), tables, 1)
  return jax.device_get((state.params, state.opt_state["tables"].rows, metrics))


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ("name", "make", "tables", "accumulate"),
  [
    slow("columns", stacked, "rowwise_adam", 1),
    ("both", shared, "lazy_catch_up", 2),
    slow("rows", stacked, "lazy", 2),
    slow("rows", shared, "rowwise_adagrad", 1),
    slow("both", stacked, "rowwise_adam", 1),
    slow("columns-tensor", stacked, "lazy_catch_up", 1),
    slow("columns-tensor", shared, "sgd", 1),
  ],
)
def test_tables_train_where_they_lie(name, make, tables, accumulate):
  sizes, rules = LAYOUTS[name]
  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  model = init(make, mesh, rules)
  step, where, state, metrics = trained(model, tables, accumulate, batch_sharding(mesh, rules))
  params, rows, want = on_one_device(make, tables)
  for key in ("loss", "grad_norm"):
    np.testing.assert_allclose(metrics[key], want[key], rtol=1e-5, err_msg=key)
  got = {**state.params, **state.opt_state["tables"].rows}
  for one, many in zip(jax.tree.leaves({**params, **rows}), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=2e-6)

  cut = table_sharding(mesh, rules)
  (table,) = rows
  stack = params[table].ndim - 2
  for key, a in state.opt_state["tables"].rows[table].items():
    wide = a.shape == params[table].shape
    expected = cut.sharding(columns=wide, stack=stack)
    assert where[table][key].is_equivalent_to(expected, a.ndim), key
    assert a.sharding.is_equivalent_to(expected, a.ndim), key
  whole = math.prod(params[table].shape[:-1]), KEYS**2
  assert not [size for _, size in shapes(step.as_text()) if size[-2:] in ((n, DIM) for n in whole)]
  piece = params[table].nbytes // cut.ways(cut.rows + cut.columns)
  assert all(size < piece for kind, size in found(step) if kind != "all-reduce")
