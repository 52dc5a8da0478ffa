"""What goes into a call and what comes out of it, as NumPy arrays."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Run:
  """What one call gave, as NumPy arrays; gradients are of a random weighted sum of y and state."""

  y: np.ndarray
  state: Any
  params: dict[str, np.ndarray]
  x: np.ndarray  # [B, T, 0] where x holds ids
  start: list[np.ndarray]  # with respect to the float leaves of the given state


@dataclasses.dataclass(frozen=True)
class Tokens:
  """`x [B, T, ...]` with what belongs to each token: context entries, its output's loss weights."""

  x: np.ndarray
  entries: dict[str, np.ndarray]
  weights: np.ndarray

  def __getitem__(self, times) -> "Tokens":
    return self.map(lambda a: a[:, times])

  def map(self, fn) -> "Tokens":
    """The tokens with `fn` applied to every array."""
    return Tokens(fn(self.x), {k: fn(v) for k, v in self.entries.items()}, fn(self.weights))

  def order(self, times: np.ndarray) -> "Tokens":
    """Token `times[b, t]` at `[b, t]`."""
    return self.map(lambda a: np.stack([row[index] for row, index in zip(a, times, strict=True)]))

  def change(self, **fields) -> "Tokens":
    """The tokens with other arrays."""
    return dataclasses.replace(self, **fields)


def is_float(a) -> bool:
  """Whether an array (concrete or abstract) is of a floating dtype."""
  return jnp.issubdtype(a.dtype, jnp.floating)
