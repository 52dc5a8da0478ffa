"""What memories are trained beside in the tests of their tasks: an LSTM, and one small trainer."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from memjax.core import join, split
from memjax.core.layers import Linear
from memjax.slots.controllers import LSTM

CHUNK = 100  # steps in one compiled call


class PlainLSTM(nnx.Module):
  """An LSTM and a linear output, called as a memory is."""

  def __init__(self, dim: int, out: int, hidden: int, rngs: nnx.Rngs):
    self.lstm = LSTM(dim, 0, hidden, rngs=rngs)
    self.out = Linear(hidden, out, bias=True, rngs=rngs)

  def init_state(self, batch: int):
    return self.lstm.init_state(batch)

  def __call__(self, x, state):
    nothing = jnp.zeros((x.shape[0], 0))

    def step(state, inputs):
      h, state = self.lstm.step(inputs, nothing, state)
      return state, h

    inputs = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), self.lstm.inputs(x))
    state, h = jax.lax.scan(step, state, inputs)
    return self.out(jnp.swapaxes(h, 0, 1)), state


def parameters(model) -> int:
  return sum(a.size for a in split(model)[0].values())


def train(model, loss, *, steps: int, learning_rate: float, batch: int, enough=None):
  """Adam on `loss(outputs, key) -> (loss, measure)`; the mean measure of the last 20 steps.

  Args:
    loss: `(run, key)`, where `run(x, **flags)` are the outputs of the model from a fresh state.
    enough: `measure -> bool`, asked after every `CHUNK` steps: then the training ends.
  """
  params, rest = split(model)
  optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(learning_rate))

  def whole(params, key):
    model = join(params, rest)
    return loss(lambda x, **flags: model(x, model.init_state(batch), **flags)[0], key)

  def step(carry, key):
    params, moments = carry
    (_, measure), grads = jax.value_and_grad(whole, has_aux=True)(params, key)
    updates, moments = optimizer.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments), measure

  @jax.jit
  def chunk(carry, key):
    return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))

  carry, measure = (params, optimizer.init(params)), None
  for i in range(steps // CHUNK):
    carry, measures = chunk(carry, jax.random.key(i))
    measure = measures[-20:].mean(axis=0)
    if enough is not None and enough(measure):
      break
  return measure
