"""One training step as a pure function; a step with bad numbers changes nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from memjax.core import Stateless, checks
from memjax.core.module import Rest, join, split
from memjax.core.state import map_rows
from memjax.parametric.batch_norm import apply_batch_stats
from memjax.parametric.tucker_keys import refresh_singular_vectors
from memjax.training.offload import on_device
from memjax.training.tables import Touches, WithTables, value_and_grad


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a training run carries from step to step.

  Attributes:
    step: int32, steps taken, those that were skipped included.
    params: the trained arrays by name (`core.split`).
    rest: the model's other arrays, and its structure.
    opt_state: the optimiser's.
    memory: the memory state carried over batches; `Stateless()` when every batch starts anew.
    key: the run's random key; a step uses `fold_in(key, step)`.
    skipped: int32, steps that were not finite.
    streak: int32, how many of the last steps were not, in a row.
  """

  step: jax.Array
  params: dict[str, jax.Array]
  rest: Rest
  opt_state: Any
  memory: Any
  key: jax.Array
  skipped: jax.Array
  streak: jax.Array

  @property
  def model(self):
    """The model with the present parameters."""
    return join(self.params, self.rest)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossOutput:
  """What a loss function returns.

  Attributes:
    total: float32, to be minimised, summed over the tokens that count.
    count: float32, their number.
    memory: the memory state after the batch.
    metrics: scalars, each a mean over the tokens.
    batch_stats: what batch norms emitted, for `parametric.apply_batch_stats`.
  """

  total: jax.Array
  count: jax.Array
  memory: Any = dataclasses.field(default_factory=Stateless)
  metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  batch_stats: dict[str, Any] = dataclasses.field(default_factory=dict)


Optimizer = optax.GradientTransformation | WithTables
LossFn = Callable[
  [Any, Any, Any, jax.Array | None], LossOutput
]  # (model, memory, batch, key); key None: evaluation


def init_train_state(
  model, optimizer: Optimizer, *, key: jax.Array, memory: Any = None,
  freeze: Callable[[str], bool] | None = None, copy: bool = True,
) -> TrainState:  # fmt: skip
  """The state before the first step, with copies of all arrays: a step donates its state.

  Args:
    model: any module.
    optimizer: as from `make_optimizer`.
    key: a typed JAX key.
    memory: a first memory state (`model.init_state(B)`) if the loss carries one over batches.
    freeze: names kept out of training, as given to `make_optimizer`.
    copy: False takes the model's parameters themselves: no table is twice in memory, but the first
      step takes them from the model, which is then of no use.
  """
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    raise TypeError(
      f"key has dtype {key.dtype}; it must be a typed key, as from jax.random.key(seed)"
    )
  params, rest = split(model, freeze)
  memory = Stateless() if memory is None else memory
  rest, memory = jax.tree.map(jnp.copy, (rest, memory))
  params = jax.tree.map(jnp.copy, params) if copy else params
  key = jax.random.wrap_key_data(jnp.copy(jax.random.key_data(key)), impl=jax.random.key_impl(key))
  zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
  return TrainState(zero(), params, rest, optimizer.init(params), memory, key, zero(), zero())


def make_train_step(
  loss_fn: LossFn, optimizer: Optimizer, *, accumulate: int = 1, momentum: float = 0.1,
  shardings: Any = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:  # fmt: skip
  """The jitted `(state, batch) -> (state, metrics)`; the given state is donated.

  A step whose loss or gradient norm is not finite, or whose memory state or statistics hold NaN,
  leaves parameters, optimiser, memory state and batch statistics as they were, bit for bit; `step`
  and the counts go on.

  Args:
    loss_fn: `(model, memory, batch, key) -> LossOutput`.
    optimizer: over `state.params`. With `WithTables` the step has no array of a table's size but
      the table and its moments, changed in place; a bad step writes nothing there.
    accumulate: the batch is cut by rows into so many parts, whose gradients are summed: those of
      the whole batch, in less memory. It divides the rows of the batch and of the memory state.
    momentum: share of the new batch in the running batch statistics.
    shardings: of the state, from `core.sharding.shardings_of(state)`: all of it then stays where it
      is; optimiser arrays in the host's memory (`host_moments`) are on the device during a step
      only. None leaves this to the compiler, which on a mesh may move arrays, once.

  Metrics (device scalars): `loss` (total / count), `count`, `grad_norm`, `finite`, `skipped`,
  `streak`, and the loss function's own.
  """
  checks.positive(accumulate=accumulate)
  names = optimizer.names if isinstance(optimizer, WithTables) else frozenset()

  def train_step(state: TrainState, batch):
    key = jax.random.fold_in(state.key, state.step)
    grads, out = _accumulate(loss_fn, names, state, batch, key, accumulate)
    loss = out.total / jnp.maximum(out.count, 1)
    sound = jnp.isfinite(loss) & ~_any_nan((out.memory, out.batch_stats))
    state = dataclasses.replace(state, opt_state=on_device(state.opt_state, shardings))
    params, opt_state, norm, finite = _update(optimizer, grads, state, sound)
    rest = apply_batch_stats(state.rest, out.batch_stats, momentum=momentum)
    new = refresh_singular_vectors(params, rest), out.memory
    rest, memory = _where(finite, new, (state.rest, state.memory))
    skipped = state.skipped + jnp.where(finite, 0, 1)
    streak = jnp.where(finite, 0, state.streak + 1)
    metrics = {
      **out.metrics, "loss": loss, "count": out.count, "grad_norm": norm, "finite": finite,
      "skipped": skipped, "streak": streak,
    }  # fmt: skip
    return TrainState(
      state.step + 1, params, rest, opt_state, memory, state.key, skipped, streak
    ), metrics

  out = None if shardings is None else (shardings, None)
  return jax.jit(train_step, donate_argnums=0, out_shardings=out)


def _any_nan(tree) -> jax.Array:
  arrays = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
  return jnp.any(jnp.stack([jnp.any(jnp.isnan(a)) for a in arrays])) if arrays else jnp.bool_(False)


def _where(finite: jax.Array, new, old):
  return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def _update(optimizer: Optimizer, grads, state: TrainState, sound: jax.Array):
  """Parameters and optimiser state after the step, the gradient's norm, whether all is finite."""
  if isinstance(optimizer, WithTables):
    return _update_with_tables(optimizer, grads, state, sound)
  norm = optax.tree.norm(grads)
  finite = sound & jnp.isfinite(norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  new = optax.apply_updates(state.params, updates), opt_state
  return *_where(finite, new, (state.params, state.opt_state)), norm, finite


def _update_with_tables(optimizer: WithTables, grads, state: TrainState, sound: jax.Array):
  """As `_update`. The norm of the tables' gradients is a by-product of their update, so whether it
  is finite must be known from something else."""
  norm, bound = optax.tree.norm(optimizer.split(grads)[1]), optimizer.bound(grads)
  finite = sound & jnp.isfinite(norm) & jnp.isfinite(bound)
  key = jax.random.fold_in(state.key, (~state.step).astype(jnp.uint32))  # that of no step
  params, opt_state, own = optimizer.update(
    grads, state.opt_state, state.params, finite=finite, key=key
  )
  return params, opt_state, jnp.hypot(norm, jnp.where(finite, own, bound)), finite


def _accumulate(loss_fn: LossFn, names, state: TrainState, batch, key, parts: int):
  """Gradients of the mean loss, and the `LossOutput` of the whole batch.

  Args:
    names: of the tables whose gradients are `Touches`: those of the parts are joined, not summed.
  """
  gradient = value_and_grad(loss_fn, names)
  if parts == 1:
    (_, out), grads = gradient(state.params, state.rest, state.memory, batch, key)
    return _divide(grads, out.count), out

  def body(total, inputs):
    memory, batch, part = inputs
    own = jax.random.fold_in(key, part)
    (_, out), grads = gradient(state.params, state.rest, memory, batch, own)
    touches = {name: grads.pop(name) for name in names & set(grads)}
    return jax.tree.map(jnp.add, total, grads), (touches, out)

  cut = lambda a: _cut_rows(a, 0, parts)  # noqa: E731
  memories = map_rows(lambda axis, a: _cut_rows(a, axis, parts), state.memory)
  wide = {name: jnp.promote_types(a.dtype, jnp.float32) for name, a in state.params.items()}
  zeros = {n: jnp.zeros(a.shape, wide[n]) for n, a in state.params.items() if n not in names}
  inputs = memories, jax.tree.map(cut, batch), jnp.arange(parts)
  grads, (touches, outs) = jax.lax.scan(body, zeros, inputs)
  # Sums of many parts in bfloat16 would lose the small ones.
  dtypes = {name: state.params[name].dtype for name in grads}
  grads |= {name: touched.unstacked() for name, touched in touches.items()}
  memory = map_rows(lambda axis, _, a: _join_rows(a, axis), state.memory, outs.memory)
  weights = outs.count / jnp.maximum(jnp.sum(outs.count), 1)
  mean = lambda a: jnp.tensordot(weights, a, 1)  # noqa: E731
  out = LossOutput(
    jnp.sum(outs.total),
    jnp.sum(outs.count),
    memory,
    jax.tree.map(mean, outs.metrics),
    outs.batch_stats,
  )
  grads = _divide(grads, out.count)
  return grads | {name: grads[name].astype(dtype) for name, dtype in dtypes.items()}, out


def _divide(grads, count):
  count = jnp.maximum(count, 1)

  def divide(g):
    return g.scaled(1 / count) if isinstance(g, Touches) else g / count.astype(g.dtype)

  return jax.tree.map(divide, grads, is_leaf=lambda g: isinstance(g, Touches))


def _cut_rows(a: jax.Array, axis: int, parts: int) -> jax.Array:
  """Rows on `axis` dealt out to `parts` on a new axis 0.

  Part p gets rows p, p + parts, ...: where rows are sharded, they stay on their device.
  """
  rows = a.shape[axis]
  if rows % parts:
    raise ValueError(
      f"accumulate={parts} does not divide the batch of {rows} rows (array {list(a.shape)})"
    )
  return jnp.moveaxis(
    a.reshape(*a.shape[:axis], rows // parts, parts, *a.shape[axis + 1 :]), axis + 1, 0
  )


def _join_rows(a: jax.Array, axis: int) -> jax.Array:
  a = jnp.moveaxis(a, 0, axis + 1)
  return a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
