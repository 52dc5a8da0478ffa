"""The Recurrent Memory Transformer: memory tokens carried over segments.

Bulatov, Kuratov, Burtsev, "Recurrent Memory Transformer", NeurIPS 2022, arXiv 2207.06881.

B batch, T tokens of the call, D width, g tokens of a segment, M memory tokens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import (
  Context,
  Memory,
  Replay,
  as_state,
  channel,
  checks,
  clean,
  leaf,
  param,
  segmented,
  select,
  submodules,
)
from memjax.core import sequence_sharding as sequence
from memjax.core.replay import as_replay
from memjax.core.segmented import SPAN
from memjax.core.usage import measure

TEXT, READ, WRITE = 0, 1, 2  # what the spans hold: tokens of one id other than 0 see each other


@as_state
class RMTState:
  """Memory and open segment of a `RecurrentMemoryTransformer`.

  Attributes:
    memory: `[B, M, D]` float32.
    body: the body's state inside the open segment; as from `init_state` at a border.
    filled: `[B] int32`, tokens in the open segment; 0 at a border; -1: the row was misused, and
      its outputs are NaN until a reset.
  """

  memory: jax.Array = leaf("memory", "embed")
  body: Any
  filled: jax.Array = leaf()


@as_state
class _Border:
  """What a whole segment hands to the next."""

  memory: jax.Array = leaf("memory", "embed")
  filled: jax.Array = leaf()


class RecurrentMemoryTransformer(Memory):
  """A body that reads M vectors before each segment and writes them anew after it.

  The decoder layout of arXiv 2207.06881. For segment t, the same vectors before and after it:

    Z_t = [mem_{t-1}, x_t, mem_{t-1}]      [B, M + g + M, D]: read block, text, write block
    H_t = body(Z_t)                        on a fresh state: positions count from the read block
    y_t = H_t[:, M : M + g],  mem_t = H_t[:, M + g :]

  Text never sees the write block, which sees everything. Tokens of a block see each other both ways
  (`causal_memory=False`, for models trained from scratch) or causally (`True`, for pretrained
  causal bodies). Truncated back-propagation is the caller's: `detach(state)` between calls.

  A call has either T = m g tokens, every row at a segment's border, or T < g, which continues the
  open segment: the read block runs before its first token, the write block after its g-th valid
  one, so that decoding equals training. In a call of T = m g, a segment with any valid token is
  written at its end, and one with none leaves the row alone. A reset acts where no valid token
  stands before it in its segment (T = m g) or in the call (T < g). Misuse gives NaN in that row
  until a reset: a reset elsewhere, whole segments while one is open, tokens past a segment's end.

  Args:
    dim: model width D.
    body: factory of the body, called as `body(dim, rngs=rngs)`: a `Stack`, or any memory. Unless
      `causal_memory`, its attention reads the blocks: `Attention(span="span")`. To continue open
      segments it carries g + 2 M tokens: `core.replace(model, capacity=...)`.
    segment: tokens g of a segment, memory tokens not counted.
    memory: memory tokens M; 0 is the body on isolated segments.
    causal_memory: memory tokens see each other in order only.
    remat: None, or "full": back-propagation keeps what crosses the segments' borders only; or a
      `Replay`, which can keep every s-th border, or keep them in the host's memory.
    init_std: standard deviation of the first memory; None: `LanguageModel`'s embedding's, D^-0.5.

  Measures (`core.usage`), of whole segments, `norm`, the root mean square length of the M vectors
  written, and `change`, how far they are from those read, by the length of these.

  State: `RMTState`. Entries of `context.tokens` are cut along with the text, 0 at memory tokens.

  Raises:
    ValueError: the body cannot take g + 2 M tokens, read the blocks, or carry an open segment; T is
      neither below g nor a multiple of it.
  """

  residual = False
  cuts_time = True

  def __init__(
    self, dim: int, *, body: Callable[..., Memory], segment: int, memory: int,
    causal_memory: bool = False, remat: str | Replay | None = None, init_std: float | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, segment=segment)
    if memory != 0:
      checks.positive(memory=memory)
    self.dim, self.segment, self.memory = dim, segment, memory
    self.causal_memory, self.remat = causal_memory, as_replay(remat)
    self.body = body(dim, rngs=rngs)
    self.sequence_sharding: sequence.SequenceSharding | None = None
    self._check_body()
    self.granularity, self.causal = segment, segmented.causal(self.body)
    init = nnx.initializers.normal(dim**-0.5 if init_std is None else init_std)
    first = functools.partial(param, rngs, init, axes=("memory", "embed"), dtype=param_dtype)
    self.first = first((memory, dim)) if memory else None

  def _check_body(self):
    own, inner = self.body_tokens, self.body.granularity
    if own % inner:
      raise ValueError(
        f"segment + 2 memory = {self.segment} + 2 * {self.memory} = {own} is not a multiple of the "
        f"body's granularity {inner}; segment={self.segment - own % inner + inner} would fit"
      )
    reads = any(getattr(module, "span", None) == SPAN for module in submodules(self.body))
    if self.memory and not self.causal_memory and not reads:
      raise ValueError(
        f"nothing in the body ({type(self.body).__name__}) reads spans, so memory tokens cannot "
        f"see each other both ways: give its attention span={SPAN!r}, or set causal_memory=True"
      )

  @property
  def body_tokens(self) -> int:
    """Tokens that the body sees between two fresh states: what its attention must carry."""
    return self.segment + 2 * self.memory

  def check_layout(self, sharding: sequence.SequenceSharding, length: int | None) -> None:
    if not sharding.time:
      return
    sizes = {"segment": self.segment, "2 * memory": 2 * self.memory}
    sharding.divide(**{name: (size, sharding.time) for name, size in sizes.items()})
    piece = self.segment // sharding.pieces
    if self.memory > piece:
      raise ValueError(
        f"memory={self.memory} tokens are more than the {piece} that a device holds of "
        f"segment={self.segment} over {sharding.pieces} pieces of time; cut time over fewer"
      )
    if length is not None and length % self.segment:
      raise ValueError(
        f"T={length} is not a multiple of segment={self.segment}: an open segment cannot go on "
        f"where time is cut, over {sharding.time}"
      )

  def init_state(self, batch: int) -> RMTState:
    border = self._border(batch)
    return RMTState(border.memory, self.body.init_state(batch), border.filled)

  def _border(self, batch: int) -> _Border:
    shape = (batch, self.memory, self.dim)
    first = jnp.zeros(shape[1:]) if self.first is None else self.first[...]
    memory = jnp.broadcast_to(first.astype(jnp.float32), shape)
    return _Border(memory, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x, length = clean(x, valid), x.shape[1]
    if self.sequence_sharding is not None:
      self.check_layout(self.sequence_sharding, length)
    segmented.check_length(length, self.segment)
    run = self._open if length < self.segment else self._whole
    return run(x, state, reset, valid, context)

  # Whole segments: T = m g.

  def _whole(self, x, state, reset, valid, context):
    batch = x.shape[0]
    y, border, touched = segmented.whole(
      self._segment, x, _Border(state.memory, state.filled), segment=self.segment,
      init=self._border(batch), reset=reset, valid=valid, context=context, remat=self.remat,
      cut=self.sequence_sharding,
    )  # fmt: skip
    body = self.body.init_state(batch)
    if touched is not None:
      body = select(touched, body, state.body)
    return y, RMTState(border.memory, body, border.filled)

  def _segment(self, x, valid, border, context):
    y, memory = self._read_text_write(x, valid, border.memory, context)
    if self.memory and channel.measuring():
      self._measure(border.memory, memory, valid)
    return y, _Border(memory, border.filled)

  def _measure(self, old, new, valid):
    rows = None if valid is None else jnp.any(valid, axis=1)
    length = lambda a: jnp.sqrt(jnp.sum(jnp.square(a), axis=(1, 2)))  # noqa: E731
    measure("norm", length(new) / self.memory**0.5, rows)
    measure("change", length(new - old) / jnp.maximum(length(old), 1e-12), rows)

  def _read_text_write(self, x, valid, memory, context):
    """The body on `[memory, x, memory]`: outputs `[B, g, D]` of the text, and the next memory."""
    batch, length, _ = x.shape
    block, cut = memory.astype(x.dtype), self.sequence_sharding
    z = sequence.frame(block, x, block, cut)
    if valid is not None:
      active = jnp.broadcast_to(jnp.any(valid, axis=1, keepdims=True), block.shape[:2])
      valid = sequence.frame(active, valid, active, cut)
    context = self._context(context, batch, (self.memory, length, self.memory))
    h, _ = self.body(z, self.body.init_state(batch), valid=valid, context=context)
    y, memory = sequence.unframe(h, self.memory, cut)
    return y, memory.astype(jnp.float32)

  # A part of the open segment: T < g.

  def _open(self, x, state, reset, valid, context):
    segmented.check_carry(self.body, self.segment, self.body_tokens, "segment + 2 memory")
    batch, length, _ = x.shape
    state, late = segmented.restart(state, lambda: self.init_state(batch), reset, valid)
    part = segmented.part(state.filled, late, valid, shape=(batch, length), segment=self.segment)
    begins, ends = part.begins, part.ends

    def read(body):
      return self._block(READ, begins, state.memory.astype(x.dtype), body, context)[1]

    def write(carry):
      memory, body = carry
      h, body = self._block(WRITE, ends, memory.astype(x.dtype), body, context)
      memory = jnp.where(ends[:, None, None], h.astype(jnp.float32), memory)
      return memory, select(ends, self.body.init_state(batch), body)

    body = segmented.if_any(begins, read, state.body)
    inner = segmented.fold_key(self._context(context, batch, (0, length, 0)), TEXT)
    y, body = self.body(x, body, valid=valid, context=inner)
    memory, body = segmented.if_any(ends, write, (state.memory, body))
    return segmented.poison(y, part.broken, valid), RMTState(memory, body, part.filled)

  def _block(self, kind: int, rows, block, body, context):
    """Runs the read or the write block in the rows that are due."""
    if not self.memory:
      return block, body
    valid = jnp.broadcast_to(rows[:, None], block.shape[:2])
    lengths = (self.memory, 0, 0) if kind == READ else (0, 0, self.memory)
    context = segmented.fold_key(self._context(context, block.shape[0], lengths), kind)
    return self.body(block, body, valid=valid, context=context)

  def _context(self, context: Context | None, batch: int, lengths) -> Context | None:
    """The body's context for [read block | text | write block] of these lengths."""
    read, text, write = lengths

    def pad(a):
      if read == write == self.memory:  # a whole segment
        block = jnp.zeros((batch, self.memory, *a.shape[2:]), a.dtype)
        return sequence.frame(block, a, block, self.sequence_sharding)
      return jnp.pad(a[:, :text], [(0, 0), (read, write)] + [(0, 0)] * (a.ndim - 2))

    tokens = {} if context is None else {name: pad(a) for name, a in context.tokens.items()}
    if not self.causal_memory:
      kind = jnp.asarray(np.repeat([READ, TEXT, WRITE], lengths), jnp.int32)
      kind = jnp.broadcast_to(kind, (batch, sum(lengths)))
      own = tokens.get(SPAN, jnp.zeros_like(kind))  # the text's spans, kept apart from the blocks'
      tokens[SPAN] = jnp.where(kind == TEXT, own + WRITE * (own > 0), kind)
    return dataclasses.replace(context or Context(), tokens=tokens) if tokens else context
