"""Memory usage of models as the recipes report it."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.usage import memory_usage, summary
from memjax.core import channel
from memjax.parametric import ProductKeyMemory
from memjax.transformer import FeedForward, LanguageModel, Stack

FEED_FORWARD = functools.partial(FeedForward, hidden=4)


def product_keys(keys):
  return functools.partial(ProductKeyMemory, keys=keys, heads=1, top_k=2, query_dim=4)


def model(*patterns):
  body = functools.partial(Stack, pattern=[FEED_FORWARD], repeats=2, exceptions=dict(patterns))
  return LanguageModel(11, 4, body=body, rngs=nnx.Rngs(0))


def batches():
  key = jax.random.key(0)
  return [{"inputs": jax.random.randint(jax.random.fold_in(key, i), (2, 5), 0, 11)} for i in (0, 1)]


def test_tables_of_different_sizes_by_layer():
  made = model((0, [product_keys(2)]), (1, [product_keys(8)]))
  found = memory_usage(made, batches())
  assert sorted(found) == [
    f"memory/{layer}/{name}" for layer in (0, 1) for name in ("kl_to_uniform", "slots_used")
  ]
  reads = {"0": np.zeros(4), "1": np.zeros(64)}
  for batch in batches():
    with channel.collect() as frame:
      made(batch["inputs"], made.init_state(2))
    for layer, counts in reads.items():
      np.add.at(counts, np.asarray(frame.emitted[f"{layer}/ids"]).ravel(), 1)
  for layer, counts in reads.items():
    p = counts / counts.sum()
    kl = np.log(len(p)) + sum(p[p > 0] * np.log(p[p > 0]))
    assert found[f"memory/{layer}/slots_used"] == pytest.approx((counts > 0).mean())
    assert found[f"memory/{layer}/kl_to_uniform"] == pytest.approx(kl, rel=1e-5)


def test_a_model_without_memory_runs_nothing():
  def run(model, memory, batch):
    assert isinstance(batch["inputs"], jax.core.Tracer)  # traced, to see; never run
    return model(batch["inputs"], model.init_state(2))[1]

  assert memory_usage(model(), batches(), run) == {}
  assert memory_usage(model(), []) == {}


def test_a_memory_carried_from_batch_to_batch():
  seen = []

  def run(model, memory, batch):
    seen.append(memory is None)
    return model(batch["inputs"], model.init_state(2) if memory is None else memory)[1]

  made = model((0, [product_keys(2)]))
  memory_usage(made, batches(), run, carry=True)
  assert seen == [True, True, False]  # looked at, run, run again with the memory


def test_summary():
  metrics = {"nats": 1.0, "memory/1/slots_used": 0.2, "memory/3/slots_used": 0.4}
  metrics |= {"memory/1/kl_to_uniform": 1.0, "memory/3/kl_to_uniform": 2.0, "memory/norm": 0.5}
  assert summary(metrics) == "30% of slots used, KL 1.50, norm 0.5"
  assert summary({"nats": 1.0}) == ""
