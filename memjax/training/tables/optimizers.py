"""Optimisers of tables that read and write the touched rows only.

Equal ids are merged before squares and before the clip's norm. Each equals optax's dense one while
every row is touched in every step; they differ in what happens to a row that a step leaves alone:

  dense          moves on by its momentum and decays
  lazy           nothing; step t of the bias correction is that of the run
  with catch-up  nothing until the next touch, which first makes up for the decay of the weights,
                 exactly, and of the moments; the moves by momentum are left out
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from memjax.training.tables.rounding import round_to
from memjax.training.tables.rules import Rule, adagrad, adam, beside, plain
from memjax.training.tables.touches import Touches
from pallas_kernels.dispatch import by_platform

Rate = float | optax.Schedule
Arrays = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableState:
  """The state of a `TableOptimizer`.

  Attributes:
    count: int32, steps taken.
    decay: `[2]` float32, the logarithm of the decay of all steps so far: a sum and what it lacks.
    rows: `{name of the table: {name: array [*L, N, ...]}}`, moments and what else a row has.
  """

  count: jax.Array
  decay: jax.Array
  rows: dict[str, dict[str, jax.Array]]


class TableOptimizer(NamedTuple):
  """What `lazy_adam` and the others return.

  Attributes:
    init: `tables -> TableState`, for tables `[*L, N, dv]` by name.
    update: `(touches, state, tables, *, finite=True, key=None) -> (tables, state, norm)`. `touches`
      has a `Touches` for every table that was read. Where `finite` (a bool of the device) is false
      nothing is written, bit for bit. `key` is for stochastic rounding. `norm` is that of the
      merged gradients before clipping. Donated tables and states are changed in place.
  """

  init: Callable[[Arrays], TableState]
  update: Callable[..., tuple[dict[str, jax.Array], TableState, jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Options:
  """What all rules share."""

  learning_rate: Rate
  weight_decay: float
  clip: float | None
  stochastic_rounding: bool
  catch_up: bool = False


@dataclasses.dataclass(frozen=True)
class _Step:
  """The numbers of one step: its count from 1, rate, and the decay before and after it."""

  count: jax.Array
  rate: jax.Array
  before: jax.Array
  after: jax.Array
  factor: jax.Array | float


def lazy_adam(
  learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
  weight_decay: float = 0.0, clip: float | None = None, catch_up: bool = False,
  stochastic_rounding: bool = True,
) -> TableOptimizer:  # fmt: skip
  """Adam on touched rows.

  m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
  u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)      t counts the run's steps
  p = p - rate (u + weight_decay p)

  Args:
    learning_rate: a number, or a schedule of the run's steps.
    b1, b2, eps: of Adam; with b1 = 0 there is no m.
    weight_decay: decoupled, times the rate.
    clip: greatest norm of all tables' gradients together; costs a second pass over the touches.
    catch_up: a row left alone for n steps first gets b1^n m, b2^n v, and its p the decay of those
      steps at their rates; 12 bytes a row.
    stochastic_rounding: of bfloat16 tables, whose small steps would vanish. Others are not rounded.
  """
  options = _Options(learning_rate, weight_decay, clip, stochastic_rounding, catch_up)
  return _optimizer(adam(b1, b2, eps, by_row=False), options)


def rowwise_adam(
  learning_rate: Rate, *, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
  weight_decay: float = 0.0, clip: float | None = None, stochastic_rounding: bool = True,
) -> TableOptimizer:  # fmt: skip
  """`lazy_adam` with one v a row, of the mean of g^2; with b1 = 0, 4 bytes of state a row."""
  options = _Options(learning_rate, weight_decay, clip, stochastic_rounding)
  return _optimizer(adam(b1, b2, eps, by_row=True), options)


def rowwise_adagrad(
  learning_rate: Rate, *, initial_accumulator: float = 0.1, eps: float = 1e-7,
  weight_decay: float = 0.0, clip: float | None = None, stochastic_rounding: bool = True,
) -> TableOptimizer:  # fmt: skip
  """Adagrad with one sum a row: s = s + mean(g^2), u = g / sqrt(s + eps); 4 bytes a row."""
  options = _Options(learning_rate, weight_decay, clip, stochastic_rounding)
  return _optimizer(adagrad(initial_accumulator, eps), options)


def sgd(
  learning_rate: Rate, *, weight_decay: float = 0.0, clip: float | None = None,
  stochastic_rounding: bool = True,
) -> TableOptimizer:  # fmt: skip
  """u = g; no state."""
  return _optimizer(plain(), _Options(learning_rate, weight_decay, clip, stochastic_rounding))


def _optimizer(rule: Rule, options: _Options) -> TableOptimizer:
  if options.clip is not None and not options.clip > 0:
    raise ValueError(f"clip={options.clip!r} must be > 0; None does not clip")

  def init(tables: Arrays) -> TableState:
    rows = {name: _rows(rule, options, table) for name, table in tables.items()}
    return TableState(jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.float32), rows)

  def update(touches, state: TableState, tables: Arrays, *, finite=True, key=None):
    unknown = sorted(set(touches) - set(tables))
    if unknown:
      raise ValueError(f"touches of {unknown}, which are not among the tables {sorted(tables)}")
    finite = jnp.asarray(finite)
    touches = {name: touched.where(finite) for name, touched in touches.items()}
    step, norm = _step(state, options), None
    if options.clip is not None:
      squares = [touched.squared_norm() for touched in touches.values()]
      norm = jnp.sqrt(sum(squares, jnp.float32(0)))
      factor = jnp.where(norm < options.clip, 1.0, options.clip / norm)
      step = dataclasses.replace(step, factor=factor)
    tables, rows, total = dict(tables), dict(state.rows), jnp.float32(0)
    for number, (name, touched) in enumerate(sorted(touches.items())):
      own = _key(options, tables[name], key, number)
      arrays = {"table": tables[name], **rows[name]}
      squares, arrays = _update_table(rule, options, step, touched, arrays, own)
      total, tables[name] = total + squares, arrays.pop("table")
      rows[name] = arrays
    count, decay = (step.count, step.after), (state.count, state.decay)
    count, decay = jax.tree.map(lambda a, b: jnp.where(finite, a, b), count, decay)
    return tables, TableState(count, decay, rows), jnp.sqrt(total) if norm is None else norm

  return TableOptimizer(init, update)


def _rows(rule: Rule, options: _Options, table: jax.Array) -> dict[str, jax.Array]:
  rows = rule.init(table)
  if options.catch_up:
    rows["last"] = beside(table, 0, dtype=jnp.int32)
    if options.weight_decay:
      rows["decay"] = beside(table, 0, 2)
  return rows


def _step(state: TableState, options: _Options) -> _Step:
  rate = options.learning_rate
  rate = jnp.asarray(rate(state.count) if callable(rate) else rate, jnp.float32)
  most = 1 - 1e-6  # of a weight that one step takes
  log = jnp.log1p(-jnp.minimum(rate * options.weight_decay, most))
  return _Step(state.count + 1, rate, state.decay, _add(state.decay, log), 1.0)


def _add(total: jax.Array, value: jax.Array) -> jax.Array:
  """Adds to a sum `[2]` in two parts: a million small steps lose nothing to its size."""
  high, low = total[0], total[1] + value
  new = high + low
  return jnp.stack([new, low - (new - high)])


def _key(options: _Options, table: jax.Array, key, number: int):
  if table.dtype != jnp.bfloat16 or not options.stochastic_rounding:
    return None
  if key is None:
    raise ValueError(
      "a bfloat16 table is rounded stochastically and needs update(..., key=...); "
      "stochastic_rounding=False rounds to nearest"
    )
  return jax.random.fold_in(key, number)


def _update_table(rule, options, step: _Step, touched: Touches, arrays: dict, key):
  """The sum of squares of a table's merged gradient, and its arrays after the update."""
  shapes = {name: a.shape for name, a in arrays.items()}
  lead, dtype = arrays["table"].ndim - 2, arrays["table"].dtype
  rule_rows = arrays.keys() - {"table", "last", "decay"}
  if touched.sharding is None:
    arrays = {n: a.reshape(touched.rows, *a.shape[lead + 1 :]) for n, a in arrays.items()}

  def moments(carry, gradient, rows, live):
    squares, block = carry
    squares = squares + jnp.sum(jnp.square(gradient))
    state = {name: rows[name] for name in rule_rows}
    if options.catch_up:
      state = rule.idle(state, _gap(step, rows))
    new = rule.update(step.factor * gradient, state, touched.row_mean)
    return (squares, block + 1), {**rows, **new}

  def move(carry, gradient, rows, live):
    table = rows["table"].astype(jnp.float32)
    new = {}
    if options.catch_up:
      table, new = _catch_up(options, step, table, rows)
    direction = rule.direction(step.factor * gradient, rows, step.count)
    table = table - step.rate * (direction + options.weight_decay * table)
    own = None if key is None else jax.random.fold_in(touched.own_key(key), carry[1])
    return carry, {**rows, **new, "table": round_to(dtype, table, own)}

  def by_blocks(touched, arrays):
    start = jnp.float32(0), jnp.int32(0)
    (squares, _), arrays = touched.update(arrays, (moments, move), start)
    return squares, arrays

  run = by_blocks
  if rule.on_cpu and touched.sharding is None and key is None and not options.catch_up:
    numbers = step.count, step.factor, step.rate, options.weight_decay
    run = by_platform(by_blocks, cpu=lambda *args: rule.on_cpu(*args, *numbers))
  squares, arrays = run(touched, arrays)
  return squares, {name: a.reshape(shapes[name]) for name, a in arrays.items()}


def _gap(step: _Step, rows: Arrays) -> jax.Array:
  """Steps since a row's last touch, `[R]`."""
  return (step.count - 1 - rows["last"]).astype(jnp.float32)


def _catch_up(options: _Options, step: _Step, table: jax.Array, rows: Arrays):
  """The decay of the weights in the steps since a row's last touch, and that it is made up for."""
  new = {"last": jnp.full(rows["last"].shape, step.count, jnp.int32)}
  if options.weight_decay:
    high, low = jnp.moveaxis(rows["decay"], -1, 0)
    idle = (step.before[0] - high) + (step.before[1] - low)
    table = table * jnp.exp(idle)[:, None]
    new["decay"] = jnp.broadcast_to(step.after, rows["decay"].shape)
  return table, new
