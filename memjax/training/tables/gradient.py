"""Gradients of a loss: dense for what is small, touched rows for tables."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.module import hold, join
from memjax.core.sharding import sharding_of_tables
from memjax.training.tables.touches import gather, is_touch, owner


def value_and_grad(loss_fn: Callable, tables: Collection[str] = ()) -> Callable:
  """`jax.value_and_grad` for loss functions of models with tables.

  Args:
    loss_fn: `(model, memory, batch, key) -> LossOutput`.
    tables: names of the tables whose gradients leave as `Touches`. They are kept out of
      differentiation: only lookups (`core.lookup`) train them, and one that nothing reads has no
      entry among the gradients.

  Returns:
    `(params, rest, memory, batch, key) -> ((total, LossOutput), grads)`, where `params` and `rest`
    are as from `core.split`, and `grads` has arrays and `Touches` by the names of `params`.

  Raises (the function returned):
    ValueError: a lookup belongs to no table, or to several; it stands inside a cond or while_loop.
  """
  names = frozenset(tables)

  def gradient(params, rest, memory, batch, key):
    held = {name: params[name] for name in params if name in names}
    moving = {name: a for name, a in params.items() if name not in names}

    def loss(moving, memory, batch, key):
      model = hold(join({**held, **moving}, rest), held)
      out = loss_fn(model, memory, batch, key)
      return out.total, out

    if not held:
      return jax.value_and_grad(loss, has_aux=True)(moving, memory, batch, key)
    asked = channel.wanted(loss, moving, memory, batch, key)
    zeros = {tap: jnp.zeros(shape.shape, shape.dtype) for tap, shape in asked.items()}
    readers = {tap: owner(tap, rest.names) for tap in asked if is_touch(tap)}
    owners = {tap: name for tap, name in readers.items() if name in names}

    def tapped(moving, taps):
      with channel.collect({**zeros, **taps}) as frame:
        total, out = loss(moving, memory, batch, key)
      return total, (out, {tap: frame.emitted[tap] for tap in owners})

    run = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
    (total, (out, emitted)), (grads, taps) = run(moving, {tap: zeros[tap] for tap in owners})
    sharding = sharding_of_tables(join(params, rest))
    return (total, out), {**grads, **gather(held, owners, emitted, taps, sharding)}

  return gradient
