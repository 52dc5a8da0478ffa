"""A stream of known words and of new ones that come back once (what a pointer network must copy;
after "Code Completion with Neural Attention and Pointer Networks", Li et al. 2018, arXiv
1711.09573).

A new word, with an id of its own >= `vocab`, follows a name, one of `names` known ids; it comes
back after the same name. A name is used once a stream, so that it tells which word to copy.
Ids: 0 stands for unknown words, 1..names are names, names + 1..vocab - 1 fill the stream.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Streams:
  """Ids `[B, T]`, and the distance to where a new word stood before, `[B, T]`; 0: it is none."""

  ids: np.ndarray
  distance: np.ndarray


def sample(seed: int, batch: int, length: int, *, names: int, vocab: int, farthest: int) -> Streams:
  """`batch` streams; distances are drawn from 2..`farthest`, where there is room."""
  if not 1 <= names < vocab - 1:
    raise ValueError(f"names={names} must be from 1 to vocab - 2 = {vocab - 2}")
  numbers = np.random.default_rng(seed)
  ids = numbers.integers(names + 1, vocab, size=(batch, length))
  distance = np.zeros_like(ids)
  for row in range(batch):
    free = np.ones(length, bool)
    for name in numbers.permutation(names) + 1:
      apart = int(numbers.integers(2, farthest + 1))
      starts = np.arange(1, length - apart - 1)
      places = starts[:, None] + np.asarray([0, 1, apart, apart + 1])[None]
      fits = starts[free[places].all(axis=1)]
      if not len(fits):
        continue
      at = int(numbers.choice(fits)) + np.asarray([0, 1, apart, apart + 1])
      ids[row, at] = [name, vocab + name, name, vocab + name]
      distance[row, at[3]], free[at] = apart, False
  return Streams(ids.astype(np.int32), distance.astype(np.int32))
