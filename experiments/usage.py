"""How much of its tables a model reads on a text."""

import functools
import statistics

import jax

from memjax.core import Table, channel
from memjax.core.module import variables
from memjax.parametric.usage import emitted_usage, usage_metrics


def memory_usage(model, batches) -> dict[str, float]:
  """Share of slots used and KL to uniform of layers that read a table; {} for a model without.

  Args:
    model: a `LanguageModel`.   batches: as from `Corpus.evaluation_batches`.

  Returns:
    `slots_used` (0..1) and `kl_to_uniform` (nats) of the layer; if there are several, of each one,
    under `layer_<depth>/`, and their means.
  """
  tables = [v for v in variables(model).values() if isinstance(v, Table)]
  if not tables:
    return {}
  rows = tables[0].shape[-2]
  total = None
  for batch in batches:
    usage = _usage(model, batch, rows)
    total = usage if total is None else jax.tree.map(lambda a, b: a + b, total, usage)
  metrics = {}
  for path, usage in (total or {}).items():
    found = usage_metrics(usage.reads)
    front = "" if len(total) == 1 else f"layer_{path}/"
    metrics[f"{front}slots_used"] = float(found["used"])
    metrics[f"{front}kl_to_uniform"] = float(found["kl"])
  for name in () if not metrics else ("slots_used", "kl_to_uniform"):
    metrics[name] = statistics.fmean(v for k, v in metrics.items() if k.endswith(name))
  return metrics


@functools.partial(jax.jit, static_argnums=2)
def _usage(model, batch, rows: int):
  ids = batch["inputs"]
  with channel.collect() as frame:
    model(ids, model.init_state(ids.shape[0]), reset=batch.get("reset"), valid=batch.get("valid"))
  return emitted_usage(frame.emitted, rows)
