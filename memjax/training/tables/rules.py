"""The directions in which touched rows move, and the state that each needs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from memjax.core import checks
from pallas_kernels.embedding_bag import cpu

Rows = dict[str, jax.Array]


class Rule(NamedTuple):
  """An optimiser's mathematics, a block of R rows at a time.

  Attributes:
    init: `table [*L, N, dv] -> {name: [*L, N, ...]}` float32.
    update: `(gradient [R, dv], rows, mean) -> rows`, where `mean` takes `[R, dv]` to the means of
      whole rows `[R]`: a device may hold a part of the columns.
    direction: `(gradient, rows, count) -> [R, dv]` by the updated rows, at step `count` from 1.
    idle: `(rows, gap [R]) -> rows` after so many steps without a gradient.
    on_cpu: `(touches, rows, count, factor, rate, decay) -> (squares, rows)`: all of the update by a
      CPU's kernel, of whole arrays, the table among them; None: there is no such kernel. Raises
      NotImplementedError where it cannot run.
  """

  init: Callable[[jax.Array], Rows]
  update: Callable[[jax.Array, Rows, Callable], Rows]
  direction: Callable[[jax.Array, Rows, jax.Array], jax.Array]
  idle: Callable[[Rows, jax.Array], Rows]
  on_cpu: Callable[..., tuple[jax.Array, Rows]] | None = None


def _per_row(rows: jax.Array, width: int) -> jax.Array:
  """`[R]` or `[R, dv]` so that it broadcasts over `[R, dv]`."""
  return jnp.broadcast_to(rows.reshape(rows.shape[0], -1), (rows.shape[0], width))


def beside(table: jax.Array, value: float, *last: int, dtype=jnp.float32) -> jax.Array:
  """An array `[*L, N, *last]` for the rows of a table `[*L, N, dv]`, on the devices of each row."""
  shape, sharding = (*table.shape[:-1], *last), None
  if not isinstance(table, Tracer) and isinstance(table.sharding, NamedSharding):
    spec = PartitionSpec(*table.sharding.spec[: table.ndim - 1])
    sharding = NamedSharding(table.sharding.mesh, spec)
  return jnp.full(shape, value, dtype, device=sharding)


def adam(b1: float, b2: float, eps: float, by_row: bool) -> Rule:
  """See `optimizers.lazy_adam`; `by_row`: one v a row."""
  checks.fraction(b1=b1, b2=b2)

  def init(table):
    first = {"m": jnp.zeros_like(table, jnp.float32)} if b1 else {}
    second = beside(table, 0) if by_row else jnp.zeros_like(table, jnp.float32)
    return {**first, "v": second}

  def update(gradient, rows, mean):
    square = (1 - b2) * gradient * gradient
    second = {"v": b2 * rows["v"] + (mean(square) if by_row else square)}
    return {**second, "m": b1 * rows["m"] + (1 - b1) * gradient} if b1 else second

  def direction(gradient, rows, count):
    t = count.astype(jnp.float32)
    # Factors of a step, because a division costs more than what else a number needs.
    first = rows.get("m", gradient) * (1 / (1 - b1**t))
    second = jnp.sqrt(rows["v"] * (1 / (1 - b2**t))) + eps
    return first / _per_row(second, gradient.shape[1])

  def idle(rows, gap):
    rates = {"m": b1, "v": b2}
    return {
      k: a * jnp.power(rates[k], gap).reshape(-1, *[1] * (a.ndim - 1)) for k, a in rows.items()
    }

  def on_cpu(touches, rows, count, factor, rate, decay):
    t = count.astype(jnp.float32)
    numbers = jnp.stack([factor, rate / (1 - b1**t), 1 / (1 - b2**t), rate * decay])
    held = rows["table"], rows["m"], rows["v"]
    table, first, second, squares = cpu.adam(
      touches.ids, touches.weights, touches.vectors, *held, numbers, b1=b1, b2=b2, eps=eps
    )
    return squares, {"table": table, "m": first, "v": second}

  return Rule(init, update, direction, idle, on_cpu if b1 and not by_row else None)


def adagrad(initial: float, eps: float) -> Rule:
  """See `optimizers.rowwise_adagrad`."""

  def update(gradient, rows, mean):
    return {"sum": rows["sum"] + mean(jnp.square(gradient))}

  def direction(gradient, rows, count):
    total = rows["sum"]
    scale = jnp.where(total > 0, jax.lax.rsqrt(total + eps), 0)
    return gradient * _per_row(scale, gradient.shape[1])

  init = lambda table: {"sum": beside(table, initial)}  # noqa: E731
  return Rule(init, update, direction, lambda rows, gap: rows)


def plain() -> Rule:
  """The gradient itself."""
  return Rule(
    lambda table: {}, lambda gradient, rows, mean: {}, lambda gradient, rows, count: gradient,
    lambda rows, gap: rows,
  )  # fmt: skip
