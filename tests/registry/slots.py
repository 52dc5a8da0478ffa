"""Rows of `memjax.slots`."""

import jax

from memjax.slots import EndToEndMemoryNetwork, NeuralTuringMachine
from tests.registry import Row


def _ntm(**options):
  return lambda rngs: NeuralTuringMachine(4, slots=5, width=3, hidden=4, **options, rngs=rngs)


def _memn2n(**options):
  return lambda rngs: EndToEndMemoryNetwork(11, 4, slots=3, words=2, hops=2, **options, rngs=rngs)


def _sentences(key, batch, length):
  return jax.random.randint(key, (batch, length, 2), 0, 11)


ROWS: list[Row] = [
  Row("ntm-lstm", _ntm(start="trained"), dim=4),
  Row(
    "ntm-mlp-heads",
    _ntm(controller="mlp", read_heads=2, write_heads=2, read_before_write=False),
    dim=4,
  ),
  Row("memn2n", _memn2n(), dim=2, inputs=_sentences),
  Row("memn2n-layerwise", _memn2n(tying="layerwise"), dim=2, inputs=_sentences),
]
