"""What the tests of tasks share: an LSTM to train beside a memory, and small trainings."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from memjax.core import join, split
from memjax.core.layers import Linear
from memjax.slots.controllers import LSTM
from memjax.tasks import segment_recall
from memjax.testing import train_small
from memjax.transformer import LanguageModel

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
  """Adam on `loss(run, key) -> (loss, measure)`; the mean measure of the last 20 steps.

  Args:
    loss: `(run, key)`, where `run(x, **flags)` are the outputs of the model from a fresh state.
    enough: `measure -> bool`, asked after every `CHUNK` steps: then the training ends.
  """
  params, rest = split(model)
  optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(learning_rate))

  def whole(params, key):
    model = join(params, rest)
    return loss(lambda x, **flags: model(x, model.init_state(batch), **flags)[0], key)

  return train_small(params, whole, optimizer, steps=steps, chunk=CHUNK, enough=enough)[1]


def recalled(
  body, *, keep: bool, steps: int, batch: int, segment: int, rate: float = 3e-3
) -> float:
  """Accuracy of a language model of width 32 at the value of a key that was told two segments ago.

  It goes from segment to segment, and hands on its state only if `keep`.
  """
  world = segment_recall.World()
  model = LanguageModel(world.vocab, 32, body=body, rngs=nnx.Rngs(0))
  params, rest = split(model)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

  def loss(params, key):
    model = join(params, rest)
    recalls = segment_recall.sample(key, batch, world, segment=segment, gap=1)
    first = model.init_state(batch)

    def step(state, ids):
      logits, state = model(ids, state if keep else first)
      return state, logits[:, -1]

    _, logits = jax.lax.scan(step, first, jnp.moveaxis(recalls.ids, 1, 0))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[-1], recalls.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits[-1], axis=-1) == recalls.answer)

  found = train_small(params, loss, optimizer, steps=steps, enough=lambda hits: hits > 0.98)
  return float(found[1])
