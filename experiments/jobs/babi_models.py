"""The memories of the bAbI jobs. Each has two halves: `encode(sentences [..., J])`, once for all
questions, and `answer(question [B, J], encoded [B, N, ...], count [B], context=)`, logits on the
`count` most recent of N sentences, the most recent first; and `loss`, nats of each question.
"""

import functools

import jax.numpy as jnp
import optax
from flax import nnx

from memjax.core import Context, param
from memjax.core.layers import Linear
from memjax.slots import MEMO, PMI, EndToEndMemoryNetwork, PMIEncoder
from memjax.slots.memo import MEMOState
from memjax.transformer import FeedForward


class Memo(nnx.Module):
  """A MEMO whose items are words, with its policy trained beside it."""

  def __init__(self, config, data, rngs: nnx.Rngs):
    made = config.model
    self.memory = MEMO(
      data.vocab, made.dim, slots=data.slots, items=data.words, heads=made.heads, hops=made.hops,
      temporal=made.temporal, dropout=made.dropout, rngs=rngs,
    )  # fmt: skip

  def encode(self, sentences):
    return sentences  # its words stay apart

  def answer(self, question, encoded, count, *, context=None):
    return self.memory.read(question, MEMOState(encoded, count), context=context)

  def loss(self, question, encoded, count, answer, key):
    """Nats and losses of the policy, and whether each is wrong, `[B]`."""
    made = self.memory.losses(question, answer, MEMOState(encoded, count), key=key)
    policy, value, hops = made.halting
    return made.answer + policy + 0.5 * value + 0.001 * hops, ~made.right


class Pmi(nnx.Module):
  """A PMI encoder over the question and the sentences of a story, each one token: words weighted by
  learned vectors of their places, and a vector that says how many sentences ago it was told."""

  def __init__(self, config, data, rngs: nnx.Rngs):
    made, tokens = config.model, data.slots + 1
    self.words = nnx.Embed(data.vocab, made.dim, rngs=rngs)
    ones, small = nnx.initializers.ones, nnx.initializers.normal(0.1)
    self.places = param(rngs, ones, (data.words, made.dim), axes=("slots", "embed"))
    # Row 0 is the question's.
    self.times = param(rngs, small, (tokens, made.dim), axes=("slots", "embed"))
    mixer = functools.partial(PMI, segment=tokens, heads=made.heads, causal=False)
    self.encoder = PMIEncoder(
      made.dim, mixer=mixer, feed_forward=functools.partial(FeedForward, hidden=2 * made.dim),
      layers=made.hops, dropout=made.dropout, rngs=rngs,
    )  # fmt: skip
    self.out = Linear(made.dim, data.vocab, bias=True, rngs=rngs)

  def encode(self, sentences):
    known = (sentences != 0).astype(jnp.float32)
    return jnp.einsum("...jd,jd,...j->...d", self.words(sentences), self.places[...], known)

  def answer(self, question, encoded, count, *, context=None):
    x = jnp.concatenate([self.encode(question)[:, None], encoded], axis=1) + self.times[...][None]
    valid = jnp.arange(x.shape[1])[None] <= count[:, None]
    y, _ = self.encoder(x, self.encoder.init_state(len(x)), valid=valid, context=context)
    return self.out(y[:, 0])


def memn2n(config, data, rngs: nnx.Rngs) -> EndToEndMemoryNetwork:
  made = config.model
  return EndToEndMemoryNetwork(
    data.vocab, made.dim, slots=data.slots, words=data.words, hops=made.hops, tying=made.tying,
    position=made.position or None, temporal=made.temporal,
    answers=data.vocab + data.slots * made.temporal, noise=made.noise, mask_empty=made.mask_empty,
    rngs=rngs,
  )  # fmt: skip


MODELS = {"memn2n": memn2n, "memo": Memo, "pmi": Pmi}


def make(config, data, rngs: nnx.Rngs):
  """The memory that a recipe names.

  Raises:
    ValueError: there is none of that name, or one without a softmax to begin without.
  """
  name = config.model.memory
  if name not in MODELS:
    raise ValueError(f"config.model.memory={name!r} must be one of {', '.join(MODELS)}")
  if name != "memn2n" and config.linear.epochs:
    raise ValueError(f"config.linear.epochs={config.linear.epochs} must be 0 with {name}")
  return MODELS[name](config, data, rngs)


def loss(net, batch, key):
  """Nats of each question of a batch, and whether its answer is wrong, `[B]`: each sentence of the
  batch is encoded once."""
  told = jnp.take(net.encode(batch["sentences"]), batch["story"], axis=0)
  if isinstance(net, Memo):
    return net.loss(batch["question"], told, batch["count"], batch["answer"], key)
  logits = net.answer(batch["question"], told, batch["count"], context=Context(key=key))
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["answer"])
  return nats, jnp.argmax(logits, axis=-1) != batch["answer"]
