"""Rows of `memjax.slots`."""

from memjax.slots import NeuralTuringMachine
from tests.registry import Row


def _ntm(**options):
  return lambda rngs: NeuralTuringMachine(4, slots=5, width=3, hidden=4, **options, rngs=rngs)


ROWS: list[Row] = [
  Row("ntm-lstm", _ntm(start="trained"), dim=4),
  Row(
    "ntm-mlp-heads",
    _ntm(controller="mlp", read_heads=2, write_heads=2, read_before_write=False),
    dim=4,
  ),
]
