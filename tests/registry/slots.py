"""Rows of `memjax.slots`."""

import jax

from memjax.core import Memory
from memjax.slots import (
  DifferentiableNeuralComputer,
  EndToEndMemoryNetwork,
  NeuralTuringMachine,
  RelationalMemory,
)
from memjax.testing import Task
from tests.registry import Row


def _ntm(**options):
  return lambda rngs: NeuralTuringMachine(4, slots=5, width=3, hidden=4, **options, rngs=rngs)


def _rmc(**options):
  return lambda rngs: RelationalMemory(4, slots=2, head_size=4, **options, rngs=rngs)


def _dnc(**options):
  small = {"slots": 4, "width": 3, "read_heads": 1, "hidden": 4}
  return lambda rngs: DifferentiableNeuralComputer(4, **(small | options), rngs=rngs)


def _memn2n(**options):
  return lambda rngs: EndToEndMemoryNetwork(11, 4, slots=3, words=2, hops=2, **options, rngs=rngs)


class _OneWord(Memory):
  """Sentences of one word, given as ids from 0: what law 10 asks."""

  def __init__(self, rngs, **options):
    self.net = EndToEndMemoryNetwork(
      10, 16, slots=4, words=1, hops=1, position=None, **options, rngs=rngs
    )

  def init_state(self, batch):
    return self.net.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, state = self.net(x[:, :, None] + 1, state, reset=reset, valid=valid, context=context)
    return y[:, :, 1:], state


def _recalls(**options):
  return Task(make=lambda rngs: _OneWord(rngs, **options), steps=400)


def _sentences(key, batch, length):
  return jax.random.randint(key, (batch, length, 2), 0, 11)


ROWS: list[Row] = [
  Row("ntm-lstm", _ntm(), dim=4),
  Row(
    "ntm-mlp-heads",
    _ntm(start="constant", controller="mlp", read_heads=2, write_heads=2, read_before_write=False),
    dim=4,
  ),
  Row("rmc", _rmc(), dim=4),
  Row("rmc-blocks", _rmc(blocks=2, heads=2, rows=2, gate="memory", project=False), dim=4),
  Row("dnc", _dnc(), dim=4),
  Row("dnc-heads", _dnc(read_heads=2, write_heads=2, strength="softplus"), dim=4),
  Row("dnc-no-link", _dnc(use_link=False), dim=4),
  Row("memn2n", _memn2n(), dim=2, inputs=_sentences, task=_recalls()),
  Row(
    "memn2n-layerwise",
    _memn2n(tying="layerwise", position="paper"),
    dim=2,
    inputs=_sentences,
    task=_recalls(tying="layerwise"),
  ),
]
