"""A small training in a few compiled calls: what tests, pictures and first tries of a memory need.

    params, rest = split(memory)
    loss = lambda params, key: my_loss(join(params, rest), key)      # -> (loss, measure)
    params, measure, steps = train_small(params, loss, optax.adam(3e-3), steps=1000)

`memjax.training` is for all that takes longer: data, checkpoints, a mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax


def train_small(
  params: Any, loss: Callable, optimizer: optax.GradientTransformation, *, steps: int,
  chunk: int = 50, last: int = 20, enough: Callable[[Any], bool] | None = None,
) -> tuple[Any, Any, int]:  # fmt: skip
  """Trains on batches that the loss draws itself; deterministic.

  Args:
    params: a pytree of arrays, all of which are trained.
    loss: `loss(params, key) -> (loss, measure)`; the measure is an array, such as an accuracy.
    steps: at most; made in calls of `chunk`, at least one.
    last: over how many of the last steps of a call the measure is a mean.
    enough: asked of that mean after every call; true ends the training.

  Returns:
    The parameters, the mean measure of the last call, and the steps made.
  """

  @jax.jit
  def run(carry, key):
    def step(carry, key):
      params, moments = carry
      (_, measure), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), measure

    return jax.lax.scan(step, carry, jax.random.split(key, chunk))

  carry, measure, index = (params, optimizer.init(params)), None, 0
  while index == 0 or (index + 1) * chunk <= steps:
    carry, measures = run(carry, jax.random.key(index))
    measure, index = measures[-last:].mean(axis=0), index + 1
    if enough is not None and enough(measure):
      break
  return carry[0], measure, index * chunk
