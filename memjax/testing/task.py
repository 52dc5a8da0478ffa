"""What law 10 trains on: settings of the smallest task that a memory must solve."""

import dataclasses
from collections.abc import Callable

from memjax.core import Memory


@dataclasses.dataclass(frozen=True)
class Task:
  """Settings of the training that shows that a memory remembers; the defaults fit most memories.

  Attributes:
    kind: "first": repeat the first token after a gap; "recall": the value of the queried key, where
      a token holds a key and its value.
    make: another constructor than the one under test, where its tiny sizes are too small to learn;
      None: the same.
    dim: width of that constructor.
    symbols: number of different tokens to remember.
    gap: tokens between what is remembered and the query (rounded up to whole segments).
    batch, steps, learning_rate: of the training (Adam), which ends when the accuracy is reached.
    accuracy: what the trained memory must reach; its twin, whose state is reset before the query,
      must stay below half way from chance to it.
  """

  kind: str = "first"
  make: Callable[..., Memory] | None = None
  dim: int | None = None
  symbols: int = 4
  gap: int = 3
  batch: int = 32
  steps: int = 400
  learning_rate: float = 1e-2
  accuracy: float = 0.95
