"""Tasks that are a stream of pieces of one size, then questions: any stretch can be made alone.

A piece is a function of what was drawn for the whole example and of its own number, so that a
stretch near the millionth token costs what the first one costs, and memory does not grow with the
stream.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from memjax.tasks.stretches import Stretches
from memjax.tasks.task import IGNORE, PAD, Batch


class Streamed(Stretches):
  """A task of `pieces` pieces of `piece` tokens each, then `questions`."""

  @property
  @abc.abstractmethod
  def pieces(self) -> int:
    """How many pieces."""

  @property
  @abc.abstractmethod
  def piece(self) -> int:
    """Tokens of a piece."""

  @property
  @abc.abstractmethod
  def asked(self) -> int:
    """Tokens of the questions."""

  @abc.abstractmethod
  def plan(self, key: jax.Array) -> Any:
    """What is drawn for the whole example; its size does not depend on the number of pieces."""

  @abc.abstractmethod
  def part(self, plan: Any, number: jax.Array) -> jax.Array:
    """The tokens `[piece]` of a piece."""

  @abc.abstractmethod
  def questions(self, plan: Any) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Inputs, targets and meta `[asked]` of the questions."""

  @property
  def told(self) -> int:
    """Tokens before the questions."""
    return self.pieces * self.piece

  @property
  def length(self) -> int:  # type: ignore[override]
    """Tokens of an example."""
    return self.told + self.asked

  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    plan, at = self.plan(key), start + jnp.arange(size)
    inputs, targets, meta = self.questions(plan)
    first, count = start // self.piece, -(-size // self.piece) + 1
    # The last one may lie behind the end, and is cut off.
    numbers = jnp.minimum(first + jnp.arange(count), self.pieces - 1)
    parts = jax.vmap(lambda i: self.part(plan, i))(numbers)
    told = jax.lax.dynamic_slice(parts.reshape(-1), (start - first * self.piece,), (size,))

    asking, place = at >= self.told, jnp.maximum(at - self.told, 0)
    beside = lambda values, other: jnp.where(asking, values[place], other)  # noqa: E731
    targets = beside(targets, IGNORE).astype(jnp.int32)
    meta = {name: beside(values, 0).astype(jnp.int32) for name, values in meta.items()}
    inputs = beside(inputs, told).astype(jnp.int32)
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), meta)

  def closed_book(self, batch: Batch) -> Batch:
    """The questions without the stream; of a whole example."""
    asking = jnp.arange(batch.inputs.shape[1]) >= self.told
    return dataclasses.replace(batch, inputs=jnp.where(asking[None], batch.inputs, PAD))
