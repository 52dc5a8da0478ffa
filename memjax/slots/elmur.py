"""ELMUR: a transformer layer whose oldest slot is rewritten once a segment.

Cherepanov, Kovalev, Panov, "ELMUR: External Layer Memory with Update/Rewrite for Long-Horizon RL",
2025, arXiv 2510.07151. Compared with the authors' code (CognitiveAISystems/RATE).

B batch, T tokens, L tokens of a segment, D model width, H heads of width K, M slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Fixed,
  Memory,
  Param,
  Replay,
  as_state,
  borders,
  bounded,
  checks,
  clean,
  leaf,
  param,
  scan,
  select,
)
from memjax.core.layers import LayerNorm, dropout
from memjax.core.replay import as_replay
from memjax.core.usage import measure_slots, trace_step
from memjax.slots import attending

_LARGEST = 1e15  # of the inputs' entries: their products stay finite


@as_state
class OpenSegment:
  """Tokens of the open segment: keys and values `[B, L, H, K]`, outputs `[B, L, D]`, float32."""

  keys: jax.Array = leaf("window", "heads", "kv")
  values: jax.Array = leaf("window", "heads", "kv")
  outputs: jax.Array = leaf("window", "embed")


@as_state
class Slots:
  """What a segment hands to the next.

  Attributes:
    memory: `[B, M, D]` float32.
    written: `[B, M] int32`, where the last token of the segment stood that wrote the slot; -1:
      never.
    length: `[B] int32`, valid tokens since the reset, those of the open segment not counted.
    filled: `[B] int32`, tokens in the open segment; 0 at a border; -1: the row was misused, and
      its outputs are NaN until a reset.
  """

  memory: jax.Array = leaf("slots", "embed")
  written: jax.Array = leaf("slots")
  length: jax.Array = leaf()
  filled: jax.Array = leaf()


@as_state
class ELMURState:
  """Slots of an `ELMUR` layer, and its open segment: zeros at a border."""

  slots: Slots
  open: OpenSegment


def _normal(shape, axes, std, *, param_dtype, rngs, kind: type = Param):
  return param(rngs, nnx.initializers.normal(std), shape, axes=axes, dtype=param_dtype, kind=kind)


class ELMUR(Memory):
  """A transformer layer whose tokens read M slots, one of which a segment of L tokens rewrites.

  With sub(x, f) = norm(x + f(x)), or x + f(norm(x)) if `pre_norm`; a segment h `[L, D]` at places
  p_t, slots m `[M, D]` written at places s_i (-1: never), one learned table `bias [2 P - 1, H]`:

      h = sub(h, self-attention)      causal; score ((q_t + u) k_s + (q_t + v) R[t - s]) / sqrt(K)
      h = sub(h, attention to m)      score q_t k_i / sqrt(K) + bias[clip(p_t - s_i)]
      h = sub(h, SwiGLU)              these are the outputs
      i = the first slot never written, with blend 1; else the one written longest ago, with `blend`
      c = sub(sub(m_i, attention to h), SwiGLU)   score q k_t / sqrt(K) + bias[clip(s_i - p_t)]
      m_i <- blend c + (1 - blend) m_i,   s_i <- the segment's last place

  What a slot held is scaled by 1 - blend every M segments. Gradients flow through the slots; the
  authors stop them at every border: `remat=Replay(detach_every=1)`, under which nothing trains what
  writes. A call has either T = m L tokens, every row at a segment's border, or T < L, which
  continues the open segment; the slots are read as they were before it and written at its L-th
  valid token. In a call of T = m L, a segment with any valid token is written at its end. Where a
  reset acts, and misuse, which gives NaN, are as in `recurrent.RecurrentMemoryTransformer`.

  Differences: c is made for the slot that is written only, which is the same; the first slots are
  drawn once, not for every sequence; u and v are each layer's own; no mixture of experts; no
  dropout on attention weights. The released code departs from its paper in three places: first
  writes are blended too; `bias` gets a segment's places in reverse; R[t - s] is R[t - s + p_0], so
  that it changes from segment to segment. `released=True` does the same.

  Args:
    dim: model width D; even.
    heads: H; the same for all three attentions.
    segment: L.
    slots: M; remembering a segment without copying it on takes as many slots as segments.
    hidden: inner width of both SwiGLUs; 4 * dim when None.
    blend: lambda, how much of a written slot is new.
    distance: P; places further apart than P - 1 share a bias.
    init_std: standard deviation of the first slots.
    pre_norm: as above; the published runs have False. With True no norm holds a slot, which grows
      with every write: what was learned over few segments is lost over many (docs/comparison.md).
    dropout: rate on what each sublayer adds; needs `context.key`.
    memory_dropout: rate on c.
    released: the released code's departures.
    remat: None, "full" or a `Replay`: what back-propagation keeps of the segments.

  Measures (`core.usage`) `read_peak` and `slots_read`, of whole segments. Traces (`inspect`)
  `read [B, T, H, M]`, and of each segment how new a slot is, `written [B, T / L, 1, M]`, and when
  they were written, `times [B, T / L, M]`.

  State: `ELMURState`; places are int32, so that a sequence ends at 2^31 tokens.
  """

  residual = False

  def __init__(
    self, dim: int, *, heads: int, segment: int, slots: int = 2, hidden: int | None = None,
    blend: float = 0.79, distance: int = 1024, init_std: float = 0.001, pre_norm: bool = False,
    dropout: float = 0.0, memory_dropout: float = 0.0, released: bool = False,
    remat: str | Replay | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    hidden = 4 * dim if hidden is None else hidden
    checks.positive(dim=dim, segment=segment, slots=slots, hidden=hidden, distance=distance)
    checks.divides("heads", heads, "dim", dim)
    checks.fraction(dropout=dropout, memory_dropout=memory_dropout)
    if dim % 2:
      raise ValueError(f"dim={dim} is odd; sines and cosines halve it: use {dim + 1}")
    if not 0 <= blend <= 1:
      raise ValueError(f"blend={blend!r} must lie in [0, 1]")
    self.dim, self.heads, self.segment, self.slots = dim, heads, segment, slots
    self.blend, self.distance, self.pre_norm = blend, distance, pre_norm
    self.dropout, self.memory_dropout, self.released = dropout, memory_dropout, released
    self.remat, self.granularity = as_replay(remat), segment
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.among = attending.Heads(dim, heads, **make)
    self.places = attending.linear(dim, dim, ("embed", "heads"), param_dtype, rngs)
    self.reading = attending.Heads(dim, heads, bias=True, **make)
    self.writing = attending.Heads(dim, heads, bias=True, **make)
    by_head = ((heads, dim // heads), ("heads", "kv"), 0.02)
    self.content_bias, self.place_bias = _normal(*by_head, **make), _normal(*by_head, **make)
    self.bias = _normal((2 * distance - 1, heads), ("window", "heads"), 1.0, **make)
    self.feed_forward = attending.SwiGLU(dim, hidden, **make)
    self.memory_feed_forward = attending.SwiGLU(dim, hidden, **make)
    self.norms = nnx.List([LayerNorm(dim, eps=1e-8, **make) for _ in range(5)])
    self.first = _normal((slots, dim), ("slots", "embed"), init_std, kind=Fixed, **make)

  def init_state(self, batch: int) -> ELMURState:
    return ELMURState(self._first(batch), self._empty(batch))

  def _first(self, batch: int) -> Slots:
    first = self.first[...].astype(jnp.float32)
    memory = jnp.broadcast_to(first[None], (batch, self.slots, self.dim))
    written, zero = jnp.full((batch, self.slots), -1, jnp.int32), jnp.zeros(batch, jnp.int32)
    return Slots(memory, written, zero, jnp.zeros_like(zero))

  def _empty(self, batch: int) -> OpenSegment:
    shape = (batch, self.segment, self.heads, self.dim // self.heads)
    return OpenSegment(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((*shape[:2], self.dim)))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    run = self._whole if borders.whole(x.shape[1], self.segment) else self._part
    return run(bounded(clean(x, valid), _LARGEST), state, reset, valid, context)

  def _whole(self, x, state, reset, valid, context):
    batch = x.shape[0]

    fold = functools.partial(
      jax.tree.map, lambda a: a.reshape(batch, -1, self.segment, *a.shape[2:])
    )
    start, late = borders.resets(fold(reset), fold(valid))
    active = None if valid is None else jnp.any(fold(valid), axis=-1)
    context = None if context is None else context.with_tokens({})
    y, slots = scan(
      self._segment, (fold(x), fold(valid), late), state.slots, init=self._first(batch),
      reset=start, valid=active, context=context, remat=self.remat,
    )  # fmt: skip
    empty = self._empty(batch)
    if active is not None:  # a row without a valid token keeps its open segment
      touched = active if start is None else active | start
      empty = select(jnp.any(touched, axis=1), empty, state.open)
    return y.reshape(x.shape), ELMURState(slots, empty)

  def _segment(self, inputs, slots, context):
    x, valid, late = inputs
    order, key = jnp.arange(self.segment, dtype=jnp.int32), None if context is None else context.key
    at, mask = order[None], (order[:, None] >= order[None, :])[None]
    if valid is not None:
      at = jnp.cumsum(valid, axis=1, dtype=jnp.int32) - valid
      mask = (mask & valid[:, None, :]) | jnp.eye(self.segment, dtype=bool)[None]
    h = self._tokens(x, at, *self._keys(x), at, mask, slots, key, valid)
    memory, written, length = self._write(h, at, valid, slots, key)
    broken = (slots.filled != 0)[:, None]
    broken = broken if late is None else broken | late
    filled = jnp.where(broken[:, -1], -1, 0)
    return borders.poison(h, broken, valid), Slots(memory, written, length, filled)

  def _part(self, x, state, reset, valid, context):
    batch, length, _ = x.shape
    start, late = borders.resets(reset, valid)
    if start is not None:
      state = select(start, self.init_state(batch), state)
    slots, key = state.slots, None if context is None else context.key
    came = jnp.ones((batch, length), jnp.bool_) if valid is None else valid
    after = slots.filled[:, None] + jnp.cumsum(came, axis=1, dtype=jnp.int32)
    broken = (slots.filled < 0)[:, None] | (after > self.segment)
    broken = broken if late is None else broken | late
    at, order = after - came, jnp.arange(self.segment, dtype=jnp.int32)[None]
    index = jnp.where(came & (at >= 0), at, self.segment)  # one past the end is dropped
    rows = jnp.arange(batch)[:, None]
    put = lambda a, new: a.at[rows, index].set(new.astype(a.dtype), mode="drop")  # noqa: E731
    k, v = self._keys(x)
    keys, values = put(state.open.keys, k), put(state.open.values, v)
    held, mask = (keys.astype(x.dtype), values.astype(x.dtype)), order[:, None] <= at[:, :, None]
    h = self._tokens(x, at, *held, order, mask, slots, key, valid)
    outputs = put(state.open.outputs, h)
    ends = (after[:, -1] == self.segment) & ~broken[:, -1]
    filled = jnp.where(broken[:, -1], -1, after[:, -1])

    def write(slots):
      new = self._write(outputs.astype(x.dtype), order, None, slots, key)
      return select(ends, Slots(*new, jnp.zeros_like(filled)), slots)

    slots = borders.if_any(ends, write, dataclasses.replace(slots, filled=filled))
    empty = select(ends, self._empty(batch), OpenSegment(keys, values, outputs))
    return borders.poison(h, broken, valid), ELMURState(slots, empty)

  def _sub(self, index: int, x, fn, key):
    norm = self.norms[index]
    y = fn(norm(x) if self.pre_norm else x)
    y = x + dropout(y, self.dropout, None if key is None else jax.random.fold_in(key, index))
    return y if self.pre_norm else norm(y)

  def _keys(self, x):
    x = self.norms[0](x) if self.pre_norm else x
    return self.among.split(self.among.key, x), self.among.split(self.among.value, x)

  def _tokens(self, x, at, keys, values, key_at, mask, slots, key, valid):
    """Outputs of tokens at places `at [B or 1, T]` of their segment, with the keys that they see
    at `key_at [B or 1, S]` and the slots of a border."""
    x = self._sub(0, x, lambda x: self._among(x, at, keys, values, key_at, mask, slots), key)
    memory = slots.memory.astype(x.dtype)
    bias = self._bias(self._places(at, slots)[:, :, None] - slots.written[:, None, :])

    def read(x):
      y, weights = self.reading.across(x, memory, bias)
      measure_slots(read=jnp.moveaxis(weights, 1, 2), valid=valid)
      return y

    return self._sub(2, self._sub(1, x, read, key), self.feed_forward, key)

  def _among(self, x, at, keys, values, key_at, mask, slots):
    heads, width = self.among, self.dim // self.heads
    q = heads.split(heads.query, x)
    u, v = (a[...].astype(x.dtype)[None, None] for a in (self.content_bias, self.place_bias))
    first = slots.length[:, None] if self.released else 0
    steps = first + jnp.arange(self.segment, dtype=jnp.int32)[None]
    table = heads.split(self.places, attending.sinusoid(steps, self.dim).astype(x.dtype))
    table = jnp.broadcast_to(table, (x.shape[0], *table.shape[1:]))
    apart = jnp.clip(at[:, :, None] - key_at[:, None, :], 0, self.segment - 1)
    by_place = attending.products(q + v, table)
    scores = attending.products(q + u, keys)
    scores += jnp.take_along_axis(by_place, apart[:, None], axis=3)
    return heads.mix(scores * width**-0.5, values, mask)[0]

  def _write(self, h, at, valid, slots, key):
    """Slots, their times and the length after a segment with outputs h at `at [B or 1, L]`."""
    slot = jnp.argmin(slots.written, axis=1)  # of those never written the first
    row = jnp.arange(slot.shape[0])
    old, time = slots.memory[row, slot][:, None], slots.written[row, slot][:, None]
    bias = self._bias(time[:, :, None] - self._places(at, slots)[:, None, :])
    mask = None if valid is None else valid[:, None, :]
    new = self._sub(3, old.astype(h.dtype), lambda m: self.writing.across(m, h, bias, mask)[0], key)
    new = self._sub(4, new, self.memory_feed_forward, key)
    key = None if key is None else jax.random.fold_in(key, 5)
    new = dropout(new, self.memory_dropout, key).astype(jnp.float32)
    blend = jnp.where((time < 0) & (not self.released), 1.0, self.blend)[:, :, None]
    new = (blend * new + (1 - blend) * old)[:, 0]
    length = slots.length + (self.segment if valid is None else jnp.sum(valid, axis=1))
    written = slots.written.at[row, slot].set(length - 1)
    trace_step(written=blend * jax.nn.one_hot(slot, self.slots)[:, None], times=written)
    return slots.memory.at[row, slot].set(new), written, length

  def _places(self, at, slots):
    return slots.length[:, None] + (self.segment - 1 - at if self.released else at)

  def _bias(self, apart):
    """`[B, T, S]` distances -> `[B, T, S, H]` float32."""
    end = self.distance - 1
    return self.bias[...].astype(jnp.float32)[jnp.clip(apart, -end, end) + end]
