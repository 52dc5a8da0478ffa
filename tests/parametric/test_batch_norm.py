"""Query batch norm: running statistics in a call, those of the valid tokens in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Stateless, channel, join, replace, scan, split
from memjax.parametric import BatchNorm, ProductKeyMemory, apply_batch_stats
from memjax.transformer import FeedForward, LanguageModel, Stack

MEMORY = functools.partial(
  ProductKeyMemory, keys=4, heads=2, top_k=2, query_dim=4, query_norm="batch"
)


@jax.jit
def call(model, x, valid=None):
  with channel.collect() as frame:
    y = model(x, valid)
  return y, frame.emitted


def test_training_uses_valid_tokens_only():
  norm = BatchNorm(3, rngs=nnx.Rngs(0))
  norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 0.0])
  x = np.random.default_rng(0).normal(2, 3, (2, 5, 3)).astype(np.float32)
  valid = np.arange(5)[None] < np.array([[5], [2]])
  x[1, 3] = np.nan
  y, emitted = call(replace(norm, use_batch=True), x, valid)
  seen = x[valid]
  want = (seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5) * [1, 2, 3] + [0, 1, 0]
  np.testing.assert_allclose(y[valid], want, rtol=1e-4, atol=1e-5)
  stats = emitted["batch_stats"]
  np.testing.assert_allclose(stats["mean"], seen.mean(0), rtol=1e-5)
  np.testing.assert_allclose(stats["variance"], seen.var(0, ddof=1), rtol=1e-5)
  assert stats["count"] == 7


def test_calls_use_running_statistics_and_emit_nothing():
  norm = BatchNorm(3, rngs=nnx.Rngs(0))
  norm.mean[...], norm.variance[...] = jnp.array([1.0, 0.0, 0.0]), jnp.array([4.0, 1.0, 1.0])
  y, emitted = call(norm, jnp.full((1, 2, 3), 3.0))
  assert not emitted
  np.testing.assert_allclose(y[0, 0], [1, 3, 3], rtol=1e-4)


def test_statistics_are_not_trained():
  params, rest = split(MEMORY(4, rngs=nnx.Rngs(0)))
  assert {"search/batch_norm/mean", "search/batch_norm/variance"} == set(rest.arrays)
  assert {"search/batch_norm/scale", "search/batch_norm/bias"} <= set(params)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_training_step_writes_them(repeats):
  """Into the right layer of a model, stacked layers each their own."""
  body = functools.partial(
    Stack, pattern=(functools.partial(FeedForward, hidden=8), MEMORY), repeats=repeats
  )
  model = LanguageModel(11, 4, body=body, rngs=nnx.Rngs(0))
  ids = jax.random.randint(jax.random.key(0), (2, 6), 0, 11)
  params, rest = split(model)

  @jax.jit
  def step(params, rest):
    model = join(params, rest)
    with channel.collect() as frame:
      replace(model, use_batch=True)(ids, model.init_state(2))
    return apply_batch_stats(rest, frame.emitted), frame.emitted

  new, emitted = step(params, rest)
  layer = "1" if repeats == 1 else "1+2x2"
  home = f"body/layers/{layer}/memory/search/batch_norm/"
  assert {name for name in rest.arrays if (new.arrays[name] != rest.arrays[name]).any()} == {
    f"{home}mean",
    f"{home}variance",
  }
  stats = emitted[f"{layer}/batch_stats"]
  for name, start in (("mean", 0), ("variance", 1)):
    np.testing.assert_allclose(new.arrays[home + name], 0.9 * start + 0.1 * stats[name], rtol=1e-5)


def test_segments_are_averaged_by_their_tokens():
  """A time scan over two segments, one of them half padding, one layer without any valid token."""
  norm = BatchNorm(2, rngs=nnx.Rngs(0))
  training = replace(norm, use_batch=True)
  x = jax.random.normal(jax.random.key(0), (1, 2, 4, 2))
  valid = jnp.array([[[True] * 4, [True, True, False, False]]])

  def segment(inputs, state, _):
    return training(*inputs), state

  def emitted(valid):
    with channel.collect() as frame:
      scan(segment, (x, valid), Stateless(), init=Stateless())
    return frame.emitted

  stats = emitted(valid)
  assert stats["batch_stats"]["mean"].shape == (2, 2)
  rest = split(norm)[1]
  new = apply_batch_stats(rest, stats, momentum=1.0)
  np.testing.assert_allclose(new.arrays["mean"], x[valid].mean(0), rtol=1e-5, atol=1e-6)
  same = apply_batch_stats(rest, emitted(jnp.zeros_like(valid)))
  for name, array in rest.arrays.items():
    np.testing.assert_array_equal(same.arrays[name], array)


def test_statistics_of_an_unknown_layer_are_refused():
  model = LanguageModel(11, 4, body=functools.partial(Stack, pattern=(MEMORY,)), rngs=nnx.Rngs(0))
  stats = {"mean": jnp.zeros(8), "variance": jnp.ones(8), "count": jnp.ones(())}
  with pytest.raises(ValueError, match="layer 3 emitted batch statistics and has 0 BatchNorms"):
    apply_batch_stats(split(model)[1], {"3/batch_stats": stats})
