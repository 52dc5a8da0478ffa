"""A model around slots that are read during a segment of g tokens and rewritten after it.

B batch, T tokens of the call, D width, g tokens of a segment, N slots, E encodings.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import (
  Context,
  Memory,
  Stateless,
  as_state,
  checks,
  clean,
  leaf,
  segmented,
  select,
  submodules,
)
from memjax.core.replay import as_replay
from memjax.slots.slot_attention import SlotRead

MEMORY, ENCODED = "memory", "encoded"  # what `SlotRead` finds in `context.shared`


@as_state
class Encoded:
  """What an encoder made of the last segment: `[B, E, D]` float32, and which of them are there,
  `[B, E] bool`: none before the first segment."""

  values: jax.Array = leaf("window", "embed")
  seen: jax.Array = leaf("window")


@as_state
class Border:
  """What a whole segment hands to the next.

  Attributes:
    memory: slots `[B, N, D]` float32.
    encoded: `Encoded`; `Stateless` without a decoder to read it.
    filled: `[B] int32`, see `core.segmented`.
  """

  memory: jax.Array = leaf("slots", "embed")
  encoded: Any
  filled: jax.Array = leaf()


@as_state
class SegmentState:
  """State of a `SegmentModel`.

  Attributes:
    border: a `Border`, or what takes its place, as the last whole segment left it; its `filled`
      counts the open segment's tokens.
    kept: `[B, g, D]` float32, what the open segment will be written from.
    body: the state of the body that runs token by token.
  """

  border: Any
  kept: jax.Array = leaf("window", "embed")
  body: Any


class SegmentModel(Memory):
  """A body that reads the border token by token, and a write at each segment's end.

      y, kept = run(x_t, border_{t-1}),   border_t = write(kept, border_{t-1})     for segment t

  A subclass calls `_set_up` in its constructor and defines `_first`, `_run` and `_write`; one with
  another border also `_border`, one that carries more through a segment `_fresh` and `_end`. For
  calls, resets and misuse see `core.segmented`. In a call of T < g the write runs after the
  segment's g-th valid token, so that decoding equals training.
  """

  residual = False
  segment: int
  slots: int
  encodings: int

  def _set_up(self, dim: int, *, segment: int, slots: int, encodings: int, remat) -> None:
    checks.positive(dim=dim, segment=segment, slots=slots)
    self.dim, self.segment, self.slots, self.encodings = dim, segment, slots, encodings
    self.granularity, self.remat = segment, as_replay(remat)

  def _check_body(self, name: str, body: Memory, *, source: str | None, causal: bool) -> None:
    """Raises ValueError unless the body reads `source` (None: is not asked to), takes g tokens, is
    causal if it must."""
    if causal and not body.causal:
      raise ValueError(
        f"{name} ({type(body).__name__}) is not causal, but its outputs are the model's: give its "
        "attention span=None; an encoder that sees both ways needs a decoder beside it"
      )
    if self.segment % body.granularity:
      raise ValueError(
        f"segment={self.segment} is not a multiple of the granularity {body.granularity} of {name}"
      )
    read = any(isinstance(m, SlotRead) and m.source == source for m in submodules(body))
    if source is not None and not read:
      raise ValueError(
        f"nothing in {name} ({type(body).__name__}) reads context.shared[{source!r}]: put a "
        f"SlotRead(source={source!r}) among its layers"
      )

  @property
  @abc.abstractmethod
  def body(self) -> Memory:
    """What runs token by token."""

  @abc.abstractmethod
  def _first(self) -> jax.Array:
    """The first memory `[N, D]`."""

  @abc.abstractmethod
  def _run(self, x, state, border, *, valid, context) -> tuple[Any, Any, Any]:
    """`y [B, T, D], kept [B, T, D], state` of tokens of one segment."""

  @abc.abstractmethod
  def _write(self, kept, valid, border, context) -> Any:
    """The border after a segment of `kept [B, g, D]`; `filled` need not be set."""

  def _end(self, kept, valid, border, state, context) -> Any:
    """As `_write`, with the state that `_run` left."""
    return self._write(kept, valid, border, context)

  def _fresh(self, batch: int) -> Any:
    """The first state that `_run` gets in a segment."""
    return self.body.init_state(batch)

  def init_state(self, batch: int) -> SegmentState:
    kept = jnp.zeros((batch, self.segment, self.dim), jnp.float32)
    return SegmentState(self._border(batch), kept, self._fresh(batch))

  def _border(self, batch: int) -> Any:
    memory, shape = self._first().astype(jnp.float32), (batch, self.encodings)
    encoded = Stateless()
    if self.encodings:
      encoded = Encoded(jnp.zeros((*shape, self.dim), jnp.float32), jnp.zeros(shape, jnp.bool_))
    memory = jnp.broadcast_to(memory[None], (batch, *memory.shape))
    return Border(memory, encoded, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    segmented.check_length(x.shape[1], self.segment)
    run = self._open if x.shape[1] < self.segment else self._whole
    return run(clean(x, valid), state, reset, valid, context)

  def _whole(self, x, state, reset, valid, context):
    start = self.init_state(x.shape[0])

    def step(x, valid, border, context):
      y, kept, state = self._run(x, start.body, border, valid=valid, context=context)
      return y, self._end(kept, valid, border, state, segmented.fold_key(context, 1))

    y, border, touched = segmented.whole(
      step, x, state.border, segment=self.segment, init=start.border, reset=reset, valid=valid,
      context=context, remat=self.remat,
    )  # fmt: skip
    after = start if touched is None else select(touched, start, state)
    return y, dataclasses.replace(after, border=border)

  def _open(self, x, state, reset, valid, context):
    segmented.check_carry(self.body, self.segment, self.segment)
    batch, length, _ = x.shape
    state, late = segmented.restart(state, lambda: self.init_state(batch), reset, valid)
    border, start = state.border, self.init_state(batch)
    part = segmented.part(border.filled, late, valid, shape=(batch, length), segment=self.segment)
    y, kept, body = self._run(x, state.body, border, valid=valid, context=context)
    place = jnp.where(part.came, part.place - 1, self.segment)  # past the end: dropped
    kept = clean(kept, valid).astype(jnp.float32)
    kept = state.kept.at[jnp.arange(batch)[:, None], place].set(kept, mode="drop")
    ends, inner = part.ends, segmented.fold_key(context, 1)

    def write(state):
      given = select(ends, state.border, start.border)  # what is not due must not spoil gradients
      tokens = jnp.where(ends[:, None, None], state.kept, 0).astype(x.dtype)
      came = jnp.broadcast_to(ends[:, None], tokens.shape[:2])
      border = self._end(tokens, came, given, select(ends, state.body, start.body), inner)
      return select(ends, dataclasses.replace(start, border=border), state)

    state = segmented.if_any(ends, write, SegmentState(border, kept, body))
    border = dataclasses.replace(state.border, filled=part.filled)
    return segmented.poison(y, part.broken, valid), dataclasses.replace(state, border=border)


def reading(context: Context | None, border: Border) -> Context:
  """The context in which `SlotRead` finds a border's memory and encodings."""
  context = Context() if context is None else context
  found = {MEMORY: border.memory}
  if isinstance(border.encoded, Encoded):
    found |= {ENCODED: border.encoded.values, f"{ENCODED}_seen": border.encoded.seen}
  return dataclasses.replace(context, shared={**context.shared, **found})
