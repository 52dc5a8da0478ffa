"""AdamW in two groups, tables and the others, each with its rate, its clip and its weight decay;
tables may have an optimiser of their touched rows instead.

Product keys (arXiv 1907.05242) train their values by plain Adam at a constant rate; Memory+ (arXiv
2412.09764) by AdamW at ten times the rate of the others, clipped apart from them.
"""

from collections.abc import Callable

import optax

from memjax.core import checks
from memjax.core.module import Table, split, variable_axes, variables
from memjax.training import tables as touched
from memjax.training.tables import TableOptimizer, WithTables

Rate = float | optax.Schedule

TABLES = ("dense", "lazy", "lazy_catch_up", "rowwise_adam", "rowwise_adagrad", "sgd")
DECAYS = ("cosine", "linear", "constant")


def warmup_decay(
  peak: float, *, steps: int, warmup: int = 0, decay: str = "cosine", final: float = 0.0
) -> optax.Schedule:
  """A learning rate that rises to `peak` and falls to `final * peak` at step `steps`.

  The first step already moves: it has `peak / warmup`, not zero.

  Args:
    peak: highest rate.
    steps: length of the training.
    warmup: steps of the linear rise.
    decay: "cosine", "linear" or "constant" (no fall).   final: fraction of the peak at the end.

  Raises:
    ValueError: a value is out of range.
  """
  if decay not in DECAYS:
    raise ValueError(f"decay={decay!r} is not one of {', '.join(map(repr, DECAYS))}")
  if not 0 <= warmup < steps:
    raise ValueError(f"warmup={warmup} must lie in 0 to steps - 1 = {steps - 1}")
  if not 0 <= final <= 1:
    raise ValueError(f"final={final} must lie in [0, 1]; it is a fraction of the peak")
  fall = {
    "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup, alpha=final),
    "linear": lambda: optax.linear_schedule(peak, final * peak, steps - warmup),
    "constant": lambda: optax.constant_schedule(peak),
  }[decay]()
  if warmup == 0:
    return fall
  # peak * (count + 1) / warmup
  rise = optax.linear_schedule(peak / warmup, peak * (1 + 1 / warmup), warmup)
  return optax.join_schedules([rise, fall], [warmup])


def table_names(model) -> frozenset[str]:
  """Names of a model's `Table`s among its variables."""
  return frozenset(
    name for name, variable in variables(model).items() if isinstance(variable, Table)
  )


def decayed_names(model) -> frozenset[str]:
  """Names of the parameters that may decay: of rank two or more, no bias and no norm's scale.

  The rank is that of one layer, also where layers are stacked. Tables are among them.
  """
  rank = {
    name: len([a for a in axes if a != "layers"]) for name, axes in variable_axes(model).items()
  }
  return frozenset(
    name for name in rank if rank[name] > 1 and name.split("/")[-1] not in ("bias", "scale")
  )


def make_optimizer(
  model, *, learning_rate: Rate, table_learning_rate: Rate | None = None, b1: float = 0.9,
  b2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1, decay_tables: bool = False,
  clip: float | None = 1.0, table_clip: float | None = None,
  tables: str | TableOptimizer = "dense", freeze: Callable[[str], bool] | None = None,
) -> optax.GradientTransformation | WithTables:  # fmt: skip
  """AdamW over the dict of arrays that `split(model, freeze)` returns.

  Args:
    model: its variables say which parameters are tables and which decay.
    learning_rate, table_learning_rate: numbers or schedules; None: tables as the others.
    b1, b2, eps: of Adam.
    weight_decay: decoupled, times the learning rate; not on biases and norms.
    decay_tables: tables decay too.
    clip, table_clip: greatest global norm of the gradients of the others, and of those of the
      tables (None: no clip). Two norms, for with one a huge table starves the rest.
    tables: "dense": as the others; or by the rows that a step touches, which costs what is read
      and not what the table holds: "lazy" and "lazy_catch_up" (Adam), "rowwise_adam",
      "rowwise_adagrad", "sgd", with the same rate, clip and decay; or one made in
      `training.tables`, which has its own.
    freeze: as given to `split`.
  """
  held, decayed = table_names(model), decayed_names(model)
  names = frozenset(split(model, freeze)[0])
  if not decay_tables:
    decayed -= held
  rates = {
    "table": learning_rate if table_learning_rate is None else table_learning_rate,
    "other": learning_rate,
  }
  if isinstance(tables, str):
    decay = weight_decay if decay_tables else 0.0
    adam = {"b1": b1, "b2": b2, "eps": eps}
    own = _touched(tables, rates["table"], adam, {"weight_decay": decay, "clip": table_clip})
  else:
    own = tables
  by_rows = frozenset() if own is None else held & names
  names -= by_rows
  norms = {"table": table_clip, "other": clip}

  def group(label):
    norm = norms[label]
    return optax.chain(
      optax.identity() if norm is None else optax.clip_by_global_norm(norm),
      optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
      optax.add_decayed_weights(weight_decay, mask={name: name in decayed for name in names}),
      optax.scale_by_learning_rate(rates[label]),
    )

  labels = {name: "table" if name in held else "other" for name in names}
  others = optax.partition({label: group(label) for label in ("other", "table")}, labels)
  return WithTables(others, own, by_rows) if own is not None and by_rows else others


def _touched(name: str, rate: Rate, adam: dict, options: dict) -> TableOptimizer | None:
  checks.one_of("tables", name, TABLES)
  forms = {
    "dense": lambda: None,
    "lazy": lambda: touched.lazy_adam(rate, **adam, **options),
    "lazy_catch_up": lambda: touched.lazy_adam(rate, catch_up=True, **adam, **options),
    "rowwise_adam": lambda: touched.rowwise_adam(rate, **adam, **options),
    "rowwise_adagrad": lambda: touched.rowwise_adagrad(rate, **options),
    "sgd": lambda: touched.sgd(rate, **options),
  }
  return forms[name]()
