"""LM2: slots beside self-attention, read by every token and rewritten through gates.

Kang, Wu, Christianos, Chan, Greenlee, Thomas, Purtorab, Toulis, "LM2: Large Memory Models", 2025,
arXiv 2502.06049. Compared with the authors' code (convergence-ai/lm2, src/memory.py).

B batch, T tokens, g tokens of a segment, D model width, H heads of width K = D / H, N slots.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Memory,
  Replay,
  Stateless,
  as_state,
  checks,
  clean,
  leaf,
  segmented,
)
from memjax.core.layers import Linear, default_init, dropout
from memjax.core.replay import as_replay
from memjax.core.usage import measure_slots, trace
from memjax.slots import gates
from memjax.slots import lm2_updates as updates
from memjax.slots.addressing import keep_largest


@as_state
class LM2State:
  """Slots of an `LM2`, its attention's state and its open segment.

  Attributes:
    memory: `[B, N, D]` float32.
    filled: `[B] int32`, tokens in the open segment; 0 at a border; -1: the row was misused, and
      its outputs are NaN until a reset.
    open: `[B, g, D]` float32, those tokens as they come from attention; `[B, 0, D]` for "code".
    attention: of the attention, or `Stateless`.
  """

  memory: jax.Array = leaf("slots", "embed")
  filled: jax.Array = leaf()
  open: jax.Array = leaf("window", "embed")
  attention: Any


@as_state
class _Border:
  """What a segment hands to the next."""

  memory: jax.Array = leaf("slots", "embed")
  filled: jax.Array = leaf()


class LM2(Memory):
  """Attention whose output reads N slots, which each segment of g tokens rewrites at its end.

  With e = attention(x) `[g, D]`, the slots M `[N, D]` of the segment before, and attention by heads
  att(q, k, v) = softmax(q k^T / sqrt(K)) v:

      r = att(e Wq, M Wk, M Wv)  [g, D],   y = e + sigmoid(r Wo + bo) r
      "shared":  u = att(M Wq', e Wk', e Wv')  [N, D]
                 M' = sigmoid(u Wi + bi) tanh(LN(u)) + sigmoid(M Wf + bf) M
      "paper":   M' = sigmoid(e Wi + bi) tanh(r) + sigmoid(r Wf + bf) M          g = N
      "code":    r as above, with biases, token t sees the slots up to t;  c = LN(M + r),
                 c = LN(c + mlp(c));  [i, f] = pooled(e) + tanh(M) Wm + bm,
                 M' = sigmoid(i + bi) tanh(c) + sigmoid(f + bf) M,  y = e + M'    g = N

  bi starts at 0 and bf at 1. M starts as the identity, which is not trained.

  The paper's equations, and its code, need as many tokens as slots: slot t is written by token t
  and by no other. "shared" is this library's reading of them for any g and N: the same gates, but
  each slot looks for what it takes. The code's gates see the mean over the whole segment, and so
  the future, in training too: "code" is not causal, takes whole segments only, and is here to
  compare; its pooled gates are `gates.PooledGates`, its mlp twice one layer, each with ReLU.

  Differences from the code: a bank of slots a layer, where it hands one from layer to layer (and
  from a batch to the next, whatever that is); gradients flow through the slots, where it stops them
  at every border: `remat=Replay(detach_every=1)`; `dropout` on the weights of r is 0, not 0.9; a
  segment shorter or longer than N is refused, where it is resampled first. Gates of "shared" and
  "paper" have biases.

  A call has either T = m g tokens, every row at a segment's border, or T < g, which continues the
  open segment: M is read as it was before it, and written at its g-th valid token. In a call of
  T = m g, a segment with any valid token is written at its end. Where a reset acts, and misuse,
  which gives NaN, are as in `recurrent.RecurrentMemoryTransformer`. Attention has its own reach: it
  crosses segments in a call.

  Args:
    dim: model width D.
    attention: factory of the attention, called as `attention(dim, rngs=rngs)`; LM2 takes its place
      in a block. None: e = x, and y is without the summand e, for a layer after one.
    slots: N, at most D: further rows of the identity would be equal, and stay so.
    segment: g; `slots` when None, as "paper" and "code" need.
    heads: H.
    variant: "shared", "paper" or "code".
    top_k: only the largest weights of r count, a token and head; they keep their values.
    dropout: rate on the weights of r; needs `context.key`.
    remat: "full", memory replay back-propagation: of a segment only the slots are kept, and it is
      run again; weights need not be stored, and a step is no slower. None keeps all; or a `Replay`.

  Measures (`core.usage`) `read_peak` and `slots_read`. Traces (`inspect`) `read [B, T, H, N]`,
  `output_gate [B, T, D]`; of each segment `input_gate` and `forget_gate [B, T / g, N, D]`, and with
  "shared" what slots saw of its tokens, `attention [B, T / g, H, N, g]`.

  State: `LM2State`.
  """

  def __init__(
    self, dim: int, *, attention: Callable[..., Memory] | None = None, slots: int = 2048,
    segment: int | None = None, heads: int = 8, variant: str = "shared", top_k: int | None = None,
    dropout: float = 0.0, remat: str | Replay | None = "full", param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    segment = slots if segment is None else segment
    checks.positive(dim=dim, slots=slots, segment=segment)
    checks.divides("heads", heads, "dim", dim)
    checks.one_of("variant", variant, ("shared", "paper", "code"))
    checks.fraction(dropout=dropout)
    _check_slots(dim, slots, segment, variant, top_k)
    self.dim, self.slots, self.segment, self.heads = dim, slots, segment, heads
    self.variant, self.top_k, self.dropout, self.remat = variant, top_k, dropout, as_replay(remat)
    self.attention = None if attention is None else attention(dim, rngs=rngs)
    if self.attention is not None and segment % self.attention.granularity:
      raise ValueError(
        f"segment={segment} is not a multiple of the granularity {self.attention.granularity} of "
        f"{type(self.attention).__name__}"
      )
    self.granularity = segment
    self.causal = variant != "code" and (self.attention is None or self.attention.causal)
    code, make = variant == "code", {"param_dtype": param_dtype, "rngs": rngs}
    first = updates.uniform(dim**-0.5) if code else default_init
    inner = functools.partial(
      Linear, dim, dim, bias=code, init=first, bias_init=first, axes=("embed", "memory"), **make
    )
    self.query, self.key, self.value = inner(), inner(), inner()
    self.gate = None if code else updates.gate(dim, **make)
    self.update = updates.UPDATES[variant](dim, heads, **make)

  def init_state(self, batch: int) -> LM2State:
    attention = Stateless() if self.attention is None else self.attention.init_state(batch)
    return self._fresh(batch, attention)

  def _fresh(self, batch: int, attention) -> LM2State:
    border, held = self._border(batch), 0 if self.variant == "code" else self.segment
    opened = jnp.zeros((batch, held, self.dim), jnp.float32)
    return LM2State(border.memory, border.filled, opened, attention)

  def _border(self, batch: int) -> _Border:
    memory = gates.identity(self.slots, self.dim, batch)
    return _Border(memory, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    length = x.shape[1]
    if self.variant == "code" and length % self.segment:
      raise ValueError(
        f"x has T={length} tokens; LM2(variant='code') ties tokens to slots={self.slots} and takes "
        f"multiples of it: pad with valid=False, or take variant='shared'"
      )
    segmented.check_length(length, self.segment)
    x, attention = clean(x, valid), state.attention
    if self.attention is not None:
      flags = {"reset": reset, "valid": valid, "context": context}
      x, attention = self.attention(x, attention, **flags)
      x = clean(x, valid)
    context = None if context is None else context.with_tokens({})
    run = self._part if length < self.segment else self._whole
    y, state = run(x, state, reset, valid, context)
    return y.astype(x.dtype), dataclasses.replace(state, attention=attention)

  # Whole segments: T = m g.

  def _whole(self, x, state, reset, valid, context):
    y, border, touched = segmented.whole(
      self._step, x, _Border(state.memory, state.filled), segment=self.segment,
      init=self._border(x.shape[0]), reset=reset, valid=valid, context=context, remat=self.remat,
    )  # fmt: skip
    opened = state.open if self.variant == "code" else jnp.zeros_like(state.open)
    if touched is not None:
      opened = jnp.where(touched[:, None, None], opened, state.open)
    return y, LM2State(border.memory, border.filled, opened, state.attention)

  def _step(self, x, valid, border, context):
    read = self._read(x, border.memory, valid, context)
    memory = self.update(x, read, border.memory, valid)
    return self._output(x, read, memory), dataclasses.replace(border, memory=memory)

  # A part of the open segment: T < g; never "code".

  def _part(self, x, state, reset, valid, context):
    batch, length, _ = x.shape
    state = dataclasses.replace(state, attention=())
    init = functools.partial(self._fresh, batch, ())
    state, late = segmented.restart(state, init, reset, valid)
    part = segmented.part(state.filled, late, valid, shape=(batch, length), segment=self.segment)
    y = self._output(x, self._read(x, state.memory, valid, context), state.memory)
    place = jnp.where(part.came & (part.place > 0), part.place - 1, self.segment)
    rows = jnp.arange(batch)[:, None]
    opened = state.open.at[rows, place].set(x.astype(jnp.float32), mode="drop")

    def write(memory):
      e = opened.astype(x.dtype)
      new = self.update(e, self._read(e, memory, None, None), memory, None)
      return jnp.where(part.ends[:, None, None], new, memory)

    memory = segmented.if_any(part.ends, write, state.memory)
    opened = jnp.where(part.ends[:, None, None], 0, opened)
    return segmented.poison(y, part.broken, valid), LM2State(memory, part.filled, opened, ())

  # The equations.

  def _read(self, x, memory, valid, context):
    """r, `[B, t, D]` float32, of tokens `x [B, t, D]`."""
    layers, mask = ((self.query, x), (self.key, memory), (self.value, memory)), None
    q, k, v = (updates.split(layer, a, self.heads) for layer, a in layers)
    if self.variant == "code":
      order = jnp.arange(self.slots)
      mask = (order[:, None] >= order[None, :])[None]
    weights = updates.weights(q, k, mask)
    measure_slots(read=jnp.moveaxis(weights, 1, 2), valid=valid)
    weights = dropout(weights, self.dropout, None if context is None else context.key)
    if self.top_k is not None:
      weights = keep_largest(weights, self.top_k)
    return updates.mix(weights, v)

  def _output(self, x, read, memory):
    y = memory
    if self.gate is not None:
      gate = jax.nn.sigmoid(self.gate(read))
      trace(output_gate=gate)
      y = gate * read
    return y if self.attention is None else x + y.astype(x.dtype)


def _check_slots(dim, slots, segment, variant, top_k):
  if slots > dim:
    raise ValueError(
      f"slots={slots} exceeds dim={dim}: slots from {dim} on would start equal, and stay so; at "
      f"most {dim} fit"
    )
  if variant != "shared" and segment != slots:
    raise ValueError(
      f"variant={variant!r} ties every token to a slot, so segment={segment} must be "
      f"slots={slots}; variant='shared' takes any"
    )
  if top_k is not None and not (isinstance(top_k, int) and 1 <= top_k <= slots):
    raise ValueError(f"top_k={top_k!r} must be None or an integer from 1 to slots={slots}")
