"""The text job with a gradient that is not finite in two steps; the losses stay as they are."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.jobs import text
from memjax import training

MAY_CHANGE = text.MAY_CHANGE
STEPS = (17, 33)  # counted from 0
make_loss = training.language_model_loss


@jax.custom_vjp
def spoil(x, bad):
  """x; its gradient is NaN where `bad`."""
  return x


spoil.defvjp(lambda x, bad: (x, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), None))


def run(config, workdir) -> bool:
  key = jax.random.key(config.seed)
  keys = jnp.stack([jax.random.key_data(jax.random.fold_in(key, step)) for step in STEPS])

  def spoiled_loss(*args, **kwargs):
    inner = make_loss(*args, **kwargs)

    def loss(model, memory, batch, key):
      out = inner(model, memory, batch, key)
      if key is None:  # an evaluation
        return out
      data = jax.random.key_data(key).reshape(1, -1)
      bad = jnp.any(jnp.all(data == keys, axis=1))
      return dataclasses.replace(out, total=spoil(out.total, bad))

    return loss

  with mock.patch.object(training, "language_model_loss", spoiled_loss):
    return text.run(config, workdir)
