"""Usage metrics: specs/parametric.md 0.6."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import channel
from memjax.parametric import (
  ProductKeyMemory,
  count_usage,
  emitted_usage,
  no_usage,
  usage_metrics,
)
from memjax.transformer import FeedForward, LanguageModel, Stack


def test_counts_reads_and_weights_but_no_padding():
  ids = jnp.array([[0, 2, 2], [4, 0, 4]])
  usage = count_usage(ids, jnp.array([[0.5, 0.2, 0.3], [1.0, 0.25, 1.0]]), rows=4)
  np.testing.assert_array_equal(usage.reads, [2, 0, 2, 0])
  np.testing.assert_allclose(usage.weight, [0.75, 0, 0.5, 0])
  both = usage + usage + no_usage(4)
  np.testing.assert_array_equal(both.reads, [4, 0, 4, 0])


def test_even_usage():
  metrics = usage_metrics(jnp.full(200, 3.0))
  assert metrics["used"] == 1
  np.testing.assert_allclose(metrics["kl"], 0, atol=1e-5)
  np.testing.assert_allclose(metrics["gini"], -1 / 200, atol=1e-4)
  tops = [int(metrics[name]) for name in ("top50", "top90", "top99")]
  np.testing.assert_allclose(tops, [100, 180, 198], atol=1)


def test_one_slot():
  metrics = usage_metrics(jnp.zeros(100, jnp.int32).at[7].set(5))
  np.testing.assert_allclose(metrics["used"], 0.01)
  np.testing.assert_allclose(metrics["kl"], np.log(100), rtol=1e-5)
  np.testing.assert_allclose(metrics["gini"], 1 - 2 / 100, rtol=1e-5)
  assert metrics["top50"] == metrics["top99"] == 1


def test_known_distribution():
  """p = (1/2, 1/4, 1/4, 0)."""
  metrics = usage_metrics(jnp.array([2, 4, 0, 2]))
  assert metrics["used"] == 0.75
  kl = np.log(4) + 0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)
  np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
  np.testing.assert_allclose(metrics["gini"], 1 - 2 * np.mean([0, 0.25, 0.5, 1]), rtol=1e-6)
  assert (metrics["top50"], metrics["top90"]) == (1, 3)


def test_nobody_read():
  metrics = usage_metrics(no_usage(8).weight)
  assert metrics["used"] == 0 and all(np.isfinite(value) for value in metrics.values())


def test_usage_of_a_model_by_layer():
  """Stacked layers stand apart; padding is not counted."""
  memory = functools.partial(ProductKeyMemory, keys=4, heads=2, top_k=3, query_dim=4)
  feed_forward = functools.partial(FeedForward, hidden=8)
  body = functools.partial(
    Stack, pattern=(feed_forward, memory), repeats=3, exceptions={2: (memory,)}
  )
  model = LanguageModel(11, 4, body=body, rngs=nnx.Rngs(0))
  ids = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)
  valid = jnp.arange(5)[None] < jnp.array([[5], [3]])

  @jax.jit
  def run(model, ids, valid):
    with channel.collect() as frame:
      model(ids, model.init_state(2), valid=valid)
    return emitted_usage(frame.emitted), frame.emitted

  usage, emitted = run(model, ids, valid)
  assert sorted(usage) == ["1", "3", "4"]
  for layer, mine in (("1", emitted["1+2x2/ids"][0]), ("3", emitted["1+2x2/ids"][1])):
    np.testing.assert_array_equal(
      usage[layer].reads, np.bincount(mine[valid].ravel(), minlength=16)
    )
  for layer in usage.values():
    assert layer.reads.sum() == 8 * 6
    np.testing.assert_allclose(layer.weight.sum(), 8 * 2, rtol=1e-5)
