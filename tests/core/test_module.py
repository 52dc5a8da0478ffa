"""Models as plain pytrees: split, join, freeze, replace, and names by depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import (
  BatchStat,
  Fixed,
  Memory,
  Stateless,
  Table,
  flatten,
  join,
  param,
  replace,
  split,
  unflatten,
)
from memjax.core.module import variable_axes, variables
from memjax.transformer import FeedForward, Stack


class Kinds(Memory):
  def __init__(self, dim, *, mode="a", rngs):
    init = nnx.initializers.normal(1.0)
    self.dim, self.mode = dim, mode
    self.weight = param(rngs, init, (dim, dim), axes=("embed", "mlp"))
    self.values = param(rngs, init, (8, dim), axes=("rows", "value"), kind=Table)
    self.order = Fixed(jnp.arange(8), axes=("rows",))
    self.mean = param(rngs, nnx.initializers.zeros, (dim,), axes=("embed",), kind=BatchStat)

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return x @ self.weight[...] + self.values[...][self.order[...][0]].reshape(1, 1, -1), state


def model(repeats=3, exceptions=None):
  return Stack(
    4,
    pattern=[Kinds, functools.partial(FeedForward, hidden=8)],
    repeats=repeats,
    exceptions=exceptions,
    rngs=nnx.Rngs(0),
  )


def test_split_trains_params_and_tables_only():
  trainable, rest = split(Kinds(4, rngs=nnx.Rngs(0)))
  assert set(trainable) == {"weight", "values"}
  assert set(rest.arrays) == {"order", "mean"}


def test_split_and_join_are_inverse_and_jit():
  original = model()
  trainable, rest = split(original, freeze=lambda name: name.endswith("values"))
  assert not any(name.endswith("values") for name in trainable)
  joined = jax.jit(join)(trainable, rest)
  assert jax.tree.structure(joined) == jax.tree.structure(original)
  for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(original), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_training_step_on_the_split_model_lowers_the_loss_and_leaves_the_rest():
  trainable, rest = split(model())
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  optimizer = optax.adam(1e-2)

  def loss(trainable, rest):
    stack = join(trainable, rest)
    return jnp.mean((stack(x, stack.init_state(2))[0] - 1.0) ** 2)

  @jax.jit
  def step(trainable, opt, rest):
    value, grads = jax.value_and_grad(loss)(trainable, rest)
    updates, opt = optimizer.update(grads, opt, trainable)
    return optax.apply_updates(trainable, updates), opt, value

  opt, values = optimizer.init(trainable), []
  for _ in range(20):
    trainable, opt, value = step(trainable, opt, rest)
    values.append(float(value))
  assert values[-1] < 0.7 * values[0]


def test_names_by_depth_do_not_depend_on_grouping():
  grouped, cut = model(3), model(3, {1: [Kinds, functools.partial(FeedForward, hidden=8)]})
  assert set(flatten(grouped)) == set(flatten(cut))
  assert "layers/2/memory/weight" in flatten(grouped)
  moved = unflatten(cut, flatten(grouped))
  x = jax.random.normal(jax.random.key(1), (2, 3, 4))
  np.testing.assert_allclose(
    moved(x, moved.init_state(2))[0], grouped(x, grouped.init_state(2))[0], rtol=1e-5, atol=1e-6
  )


def test_unflatten_names_what_is_missing_and_what_has_another_shape():
  flat = flatten(model())
  del flat["layers/2/memory/weight"]
  with pytest.raises(KeyError, match="layers/2/memory/weight"):
    unflatten(model(), flat)
  flat = flatten(model())
  flat["norm/scale"] = jnp.zeros(5)
  with pytest.raises(ValueError, match=r"norm/scale has shape \[5\]; expected \[4\]"):
    unflatten(model(), flat)


def test_optimiser_states_flatten_by_the_same_names():
  trainable, _ = split(model())
  flat = flatten(optax.adam(1e-3).init(trainable))
  assert "0/mu/layers/2/memory/weight" in flat


def test_axes_of_stacked_parameters_start_with_layers():
  named = variable_axes(model())
  assert named["layers/0+2x3/memory/weight"] == ("layers", "embed", "mlp")
  assert named["norm/scale"] == ("embed",)
  assert all(len(named[name]) == v[...].ndim for name, v in variables(model()).items())


def test_replace_changes_a_copy():
  original = model()
  changed = replace(original, mode="b")

  def modes(m):
    return [layer.memory.mode for layer in m.layers.values() if hasattr(layer.memory, "mode")]

  assert modes(changed) == ["b"] and modes(original) == ["a"]
  with pytest.raises(AttributeError, match="'capacitty'"):
    replace(original, capacitty=3)


def test_param_axes_must_match_the_shape():
  with pytest.raises(ValueError, match="names 1 axes"):
    param(nnx.Rngs(0), nnx.initializers.zeros, (2, 3), axes=("embed",))
