"""What memories over segments of g tokens share: calls of whole segments, and of a part of one.

A call has either T = m g tokens, every row at a segment's border, or T < g, which continues the
open segment. A state's `filled [B] int32` counts the tokens in it: 0 at a border; -1 where the row
was misused, and its outputs are NaN until a reset.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memjax.core import borders
from memjax.core import sequence_sharding as sequence
from memjax.core.borders import if_any, poison, resets
from memjax.core.memory import Context, Memory, scan
from memjax.core.module import submodules
from memjax.core.replay import Replay
from memjax.core.sequence_sharding import SequenceSharding
from memjax.core.state import select

__all__ = [
  "SPAN", "Part", "causal", "check_carry", "check_length", "fold_key", "if_any", "part", "poison",
  "resets", "restart", "whole",
]  # fmt: skip

SPAN = "span"  # the entry of `context.tokens` that a body's attention reads: see `Attention.span`


def check_length(length: int, segment: int) -> None:
  """Raises ValueError unless T is below g, or a multiple of it."""
  borders.whole(length, segment)


def check_carry(body: Memory, segment: int, need: int, why: str = "segment") -> None:
  """Raises ValueError unless the attention in `body` carries the `need` tokens of a segment."""
  for module in submodules(body):
    capacity = getattr(module, "capacity", None)
    least = 1 if getattr(module, "window", None) else need  # a window's ring never fills
    if capacity is not None and capacity < least:
      raise ValueError(
        f"a call of fewer than segment={segment} tokens goes on in an open segment, but "
        f"{type(module).__name__} inside the body has capacity={capacity}; it must carry "
        f"{why} = {need} tokens: use core.replace(model, capacity={need})"
      )


def causal(body: Memory) -> bool:
  """Whether a body is causal over tokens without spans, as attention that reads spans is."""
  memories = [m for m in submodules(body) if isinstance(m, Memory)]
  innermost = [m for m in memories if sum(isinstance(s, Memory) for s in submodules(m)) == 1]
  return all(m.causal or getattr(m, "span", None) is not None for m in innermost)


def whole(
  step: Callable, x, border, *, segment: int, init, reset=None, valid=None,
  context: Context | None = None, remat: Replay | None = None,
  cut: SequenceSharding | None = None,
) -> tuple[jax.Array, Any, jax.Array | None]:  # fmt: skip
  """Runs `y, border = step(x, valid, border, context)` over the segments of a call of T = m g.

  A segment with any valid token counts, one with none leaves the row alone. A reset acts where no
  valid token stands before it in its segment; anywhere else it is misuse, as is an open segment.

  Args:
    step: on the tokens `[B, g, D]` and flags `[B, g]` of a segment.
    border: the state between segments, which holds `filled`; `step` need not set it.
    init: the border that a reset brings back.
    cut: how tokens lie on a mesh.

  Returns:
    y: `[B, T, D]`.   border: after the last segment.   touched: `[B] bool`, rows whose open
    segment is gone; None: all.
  """

  def fold(tree):
    return jax.tree.map(lambda a: sequence.fold(a, segment, cut), tree)

  def body(inputs, border, context):
    x, valid, late = inputs
    y, new = step(x, valid, border, context)
    broken = (border.filled != 0)[:, None]
    broken = broken if late is None else broken | late
    new = dataclasses.replace(new, filled=jnp.where(broken[:, -1], -1, 0))
    return poison(y, broken, valid), new

  folded, valid = fold(x), fold(valid)
  if context is not None:
    context = context.with_tokens(fold(context.tokens))
  start, late = resets(fold(reset), valid, cut)
  active = None if valid is None else jnp.any(valid, axis=-1)
  y, border = scan(
    body, (folded, valid, late), border,
    init=init, reset=start, valid=active, context=context, remat=remat,
  )  # fmt: skip
  touched = None
  if active is not None:  # a row without a valid token keeps its open segment
    touched = jnp.any(active if start is None else active | start, axis=1)
  return sequence.unfold(y, cut), border, touched


class Part(NamedTuple):
  """What a call of T < g tokens means to each row.

  Attributes:
    came: `[B, T] bool`, the tokens that count.   place: `[B, T] int32`, tokens of the segment up to
      each, itself included.
    begins, ends: `[B] bool`, the call has the segment's first token, its last.
    broken: `[B, T] bool`, outputs that must be NaN.   filled: `[B] int32`, afterwards.
  """

  came: jax.Array
  place: jax.Array
  begins: jax.Array
  ends: jax.Array
  broken: jax.Array
  filled: jax.Array


def part(filled: jax.Array, late, valid, *, shape: tuple[int, int], segment: int) -> Part:
  """Counts the tokens `[B, T]` of a call of T < g, after the resets that are in time."""
  came = jnp.ones(shape, jnp.bool_) if valid is None else valid
  place = filled[:, None] + jnp.cumsum(came, axis=1, dtype=jnp.int32)
  broken = (filled < 0)[:, None] | (place > segment)
  broken = broken if late is None else broken | late
  begins = (filled == 0) & jnp.any(came, axis=1)
  ends = (place[:, -1] == segment) & ~broken[:, -1]
  after = jnp.where(broken[:, -1], -1, jnp.where(ends, 0, place[:, -1]))
  return Part(came, place, begins, ends, broken, after)


def restart(state, init: Callable[[], Any], reset, valid):
  """The state at the start of a call of T < g, and where a reset came too late, `[B, T]`."""
  start, late = resets(reset, valid)
  return state if start is None else select(start, init(), state), late


def fold_key(context: Context | None, index: int) -> Context | None:
  """The context with `index` folded into its key, if there is one."""
  return None if context is None else context.fold(index)
