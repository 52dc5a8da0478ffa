"""How much a model uses its memories, measured on a text or other batches."""

import functools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import jax

from memjax.core import channel
from memjax.core.usage import measured
from memjax.parametric.usage import emitted_usage, usage_metrics

PREFIX = "memory/"


def language_model(model, memory, batch):
  """Runs a `LanguageModel` on a batch of text; returns the memory state after it."""
  ids = batch["inputs"]
  memory = model.init_state(ids.shape[0]) if memory is None else memory
  return model(ids, memory, reset=batch.get("reset"), valid=batch.get("valid"))[1]


def memory_usage(
  model, batches: Iterable, run: Callable = language_model, *, carry: bool = False
) -> dict[str, float]:
  """What the memories of a model tell of their use; {} for a model without one that does.

  Args:
    model: any module.
    batches: as `run` takes them.
    run: `(model, memory, batch) -> memory` calls the model; memory is None at first.
    carry: hand the memory state on from batch to batch.

  Returns:
    `memory/<path>/<name>` by the layer's path, such as `memory/2/slots_used`. Tables: `slots_used`
    (share of rows that were read), `kl_to_uniform` (of the reads, in nats); others: what they
    measure, as their docstrings say (`core.usage`).
  """
  total = memory = None
  for batch in batches:
    if total is None and not jax.tree.leaves(
      jax.eval_shape(functools.partial(_sums, run), model, memory, batch)[1]
    ):
      return {}
    new, sums = _jitted(run, model, memory, batch)
    memory = new if carry else None
    total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
  if total is None:
    return {}
  return {name: float(value) for name, value in jax.device_get(_values(total)).items()}


def summary(metrics: dict[str, float]) -> str:
  """The means over layers, in a few words: `43% of slots used, KL 1.20`."""
  groups: dict[str, list[float]] = {}
  for name, value in metrics.items():
    if name.startswith(PREFIX):
      groups.setdefault(name.rpartition("/")[2], []).append(value)
  means = {name: statistics.fmean(values) for name, values in groups.items()}
  parts = []
  if "slots_used" in means:
    used, kl = means.pop("slots_used"), means.pop("kl_to_uniform")
    parts.append(f"{used:.0%} of slots used, KL {kl:.2f}")
  return ", ".join(parts + [f"{name.replace('_', ' ')} {mean:.3g}" for name, mean in means.items()])


def _sums(run: Callable, model, memory, batch) -> tuple[Any, dict]:
  with channel.collect(measure=True) as frame:
    memory = run(model, memory, batch)
  return memory, {"tables": emitted_usage(frame.emitted), "others": measured(frame.emitted)}


_jitted = functools.partial(jax.jit, static_argnums=0)(_sums)


@jax.jit
def _values(total: dict) -> dict[str, jax.Array]:
  values = {}
  for path, usage in total["tables"].items():
    found = usage_metrics(usage.reads)
    values[_name(path, "slots_used")] = found["used"]
    values[_name(path, "kl_to_uniform")] = found["kl"]
  for path, means in total["others"].items():
    values |= {_name(path, name): mean.value for name, mean in means.items()}
  return values


def _name(path: str, name: str) -> str:
  return "/".join([PREFIX.rstrip("/"), *([path] if path else []), name])
