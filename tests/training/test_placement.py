"""A training state on a mesh: where its arrays lie, that it is the state of one device, and that
nothing is drawn whole."""

import functools
import logging
import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from memjax.core import flatten
from memjax.core.sharding import DEFAULT_RULES, batch_sharding, make_mesh
from memjax.slots import NeuralTuringMachine
from memjax.training import (
  abstract_state,
  init_train_state,
  language_model_loss,
  make_optimizer,
  make_state,
  make_train_step,
  state_shardings,
)
from memjax.transformer import Attention, LanguageModel, Stack
from tests.training.tiny import Tiny, no_memory, same_bits

RULES = dict.fromkeys(DEFAULT_RULES) | {"batch": "data", "rows": "data"}


def mesh():
  return make_mesh({"data": 4, "model": 2})


def parts(tables="dense"):
  """A model whose table `[8, 3]` can be cut by rows, and its optimiser."""
  return (
    lambda: Tiny(nnx.Rngs(0), rows=8),
    lambda model: make_optimizer(model, learning_rate=1e-2, tables=tables),
  )


def specs(shardings) -> dict:
  return {name: place.spec for name, place in flatten_places(shardings).items()}


def flatten_places(tree) -> dict[str, NamedSharding]:
  named, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): place for path, place in named}


def test_moments_lie_where_their_parameters_lie():
  state, *_ = abstract_state(*parts(), key=jax.random.key(0), memory=lambda model: no_memory(8))
  found = specs(state_shardings(state, mesh(), RULES))
  assert found["params/table"] == P("data", None)
  moments = {n: s for n, s in found.items() if n.startswith("opt_state") and n.endswith("/table")}
  assert len(moments) == 2 and set(moments.values()) == {P("data", None)}
  assert found["memory/total"] == P("data", None)
  everywhere = [n for n, s in found.items() if n in ("step", "key") or n.endswith("count")]
  assert len(everywhere) >= 3 and all(found[name] == P() for name in everywhere)


def test_numbers_of_rows_lie_with_the_rows():
  state, *_ = abstract_state(*parts("rowwise_adam"), key=jax.random.key(0))
  found = specs(state_shardings(state, mesh(), RULES))
  rows = {name.rpartition("/")[2]: s for name, s in found.items() if "/rows/table/" in name}
  assert rows == {"m": P("data", None), "v": P("data")}


def test_an_axis_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match="table of shape .* 6 is not divisible by 4"):
    make_state(
      lambda: Tiny(nnx.Rngs(0), rows=6),
      parts()[1],
      key=jax.random.key(0),
      mesh=mesh(),
      rules=RULES,
    )


@pytest.mark.parametrize("tables", ["dense", "rowwise_adam"])
def test_a_state_drawn_in_pieces_is_that_of_one_device(tables):
  make_model, optimizer = parts(tables)
  options = {"key": jax.random.key(7), "memory": lambda model: no_memory(8)}
  whole = jax.jit(lambda: make_state(make_model, optimizer, **options)[0])()
  placement = {"mesh": mesh(), "rules": RULES}
  state, _, shardings = make_state(make_model, optimizer, **options, **placement)
  assert same_bits(flat(state), flat(whole))
  for a, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
    assert a.sharding == place
  table = state.params["table"]
  assert {shard.data.shape for shard in table.addressable_shards} == {(2, 3)}

  template, _, again = abstract_state(make_model, optimizer, **options, **placement)
  assert jax.tree.structure(template) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(template), jax.tree.leaves(state), strict=True):
    assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
  assert jax.tree.leaves(again) == jax.tree.leaves(shardings)


def test_without_a_mesh_it_is_init_train_state():
  make_model, make = parts()
  state, optimizer, shardings = make_state(make_model, make, key=jax.random.key(7))
  expected = init_train_state(make_model(), optimizer, key=jax.random.key(7))
  assert shardings is None and same_bits(state, expected)


def test_a_step_leaves_all_where_it_was(caplog):
  layers = (functools.partial(Attention, heads=2),)
  body = functools.partial(Stack, pattern=layers, repeats=2)
  state, optimizer, shardings = make_state(
    lambda: LanguageModel(8, 16, body=body, rngs=nnx.Rngs(0)),
    lambda model: make_optimizer(model, learning_rate=1e-2),
    key=jax.random.key(0),
    mesh=make_mesh({"data": 2, "fsdp": 2, "model": 2}),
  )
  step = make_train_step(language_model_loss(), optimizer, shardings=shardings)
  ids = np.arange(4 * 6, dtype=np.int32).reshape(4, 6) % 8
  where = batch_sharding(make_mesh({"data": 2, "fsdp": 2, "model": 2}))
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for _ in range(3):
      state, _ = step(state, jax.device_put({"inputs": ids, "targets": ids}, where))
  compiled = [r for r in caplog.messages if r.startswith("Compiling jit(train_step)")]
  assert len(compiled) == 1  # no array moved, so nothing was compiled again
  for a, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
    assert a.sharding.is_equivalent_to(place, a.ndim)
  cut = [a for a in jax.tree.leaves(state.params) if not a.is_fully_replicated]
  assert sum(math.prod(a.shape) for a in cut) > 1000


def flat(tree) -> dict:
  return flatten(jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree))


def is_key(a) -> bool:
  return jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)


def test_a_layout_is_checked_first_and_told_to_the_layers():
  ntm = functools.partial(NeuralTuringMachine, slots=4, width=4, hidden=8)
  body = functools.partial(Stack, pattern=(ntm,))
  make = lambda: LanguageModel(16, 8, body=body, rngs=nnx.Rngs(0))  # noqa: E731
  optimizer = lambda model: make_optimizer(model, learning_rate=1e-2)  # noqa: E731
  where = {"key": jax.random.key(0), "mesh": make_mesh({"data": 4, "context": 2})}
  with pytest.raises(ValueError, match="NeuralTuringMachine goes through the tokens one after"):
    make_state(make, optimizer, **where)
  state, *_ = abstract_state(make, optimizer, **where, layout={"gather_time": True})
  assert state.model.body.layers["0"].sequence_sharding.gather_time
