"""Causal attention, with the keys and values of the past as its state.

Vaswani et al., "Attention Is All You Need", NIPS 2017, arXiv 1706.03762.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, bounded, checks, clean, segments
from memjax.core.layers import Linear, RMSNorm
from memjax.core.sequence_sharding import SequenceSharding, cumsum
from memjax.transformer import cache as kv
from memjax.transformer.on_mesh import attend_apart, attend_by_blocks
from memjax.transformer.ring import Marks
from memjax.transformer.rotary import PLAIN, Rotary, rotate

LONG = 2048  # see `Attention._long`
_LARGEST = 1e15  # of a query's or key's entries: their products stay finite


class Attention(Memory):
  """Causal attention over a call's tokens and over the cached ones (arXiv 1706.03762).

  Several query heads may share one key and value head (grouped queries, arXiv 2305.13245).

  With `capacity = 0` a call sees its own tokens only and carries nothing (training). With a
  capacity it carries: full attention keeps up to `capacity` tokens, and a row that passes it gives
  NaN from that token on and keeps its cache; with a `window` any capacity > 0 means `sinks` slots
  and a ring of `window`, which never fill. `core.replace(model, capacity=n)` changes it without
  touching parameters.

  Positions count the valid tokens since the last reset.

  Its gradient is written out (`attend`): `jax.grad` and `jax.vjp` take it, `jax.jvp` does not.

  Args:
    dim: model width D.
    heads: query heads H.
    kv_heads: key and value heads; `heads` when None.
    head_dim: width K of a head; dim / heads when None.
    window: each token sees itself and the `window - 1` tokens before it; all when None.
    sinks: with a window, the first tokens since the reset, which all later ones see as well
      (arXiv 2309.17453). Within a call they cost a mask `[1, T, T]`.
    capacity: tokens that full attention can carry; 0 carries nothing.
    rotary: base and scaling of the rotary positions; None for no positions. A scaling that depends
      on the text's length gets `window`, else `capacity`, else the call's T.
    positions: name of a `context.tokens` entry `[B, T]` of an integer dtype that rotary positions
      are read from (skipped positions in training); None: the count above. Masks always count.
    qk_norm: RMS-normalise queries and keys of each head before they are rotated (arXiv 2302.05442).
    bias: biases in all the projections.
    span: name of a `context.tokens` entry `[B, T]` of an integer dtype. Tokens of one call with the
      same non-zero number see each other in both directions; 0 is a plain causal token.
    cache_dtype: dtype of the cache.

  State: `cache.KVCache`; `Stateless` without capacity.
  """

  cuts_time = True

  def __init__(
    self, dim: int, *, heads: int, kv_heads: int | None = None, head_dim: int | None = None,
    window: int | None = None, sinks: int = 0, capacity: int = 0, rotary: Rotary | None = PLAIN,
    positions: str | None = None, qk_norm: bool = False, bias: bool = False,
    span: str | None = None, cache_dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, heads=heads)
    if head_dim is None:
      checks.divides("heads", heads, "dim", dim)
    head_dim = dim // heads if head_dim is None else head_dim
    kv_heads = heads if kv_heads is None else kv_heads
    checks.positive(head_dim=head_dim)
    checks.divides("kv_heads", kv_heads, "heads", heads)
    _check_options(head_dim, window, sinks, capacity, rotary, positions)
    self.dim, self.heads, self.kv_heads, self.head_dim = dim, heads, kv_heads, head_dim
    self.window, self.capacity, self.rotary, self.span = window, capacity, rotary, span
    self.sinks, self.positions = sinks, positions
    self.cache_dtype = jnp.dtype(cache_dtype)
    self.causal, self.sequence_sharding = span is None, None
    make = {"bias": bias, "param_dtype": param_dtype, "rngs": rngs}
    self.query = Linear(dim, heads * head_dim, axes=("embed", "heads"), **make)
    self.key = Linear(dim, kv_heads * head_dim, axes=("embed", "heads"), **make)
    self.value = Linear(dim, kv_heads * head_dim, axes=("embed", "heads"), **make)
    self.out = Linear(heads * head_dim, dim, axes=("heads", "embed"), **make)
    norm = {"param_dtype": param_dtype, "rngs": rngs}
    self.query_norm = RMSNorm(head_dim, **norm) if qk_norm else None
    self.key_norm = RMSNorm(head_dim, **norm) if qk_norm else None

  @property
  def slots(self) -> int:
    """Slots S of the cache."""
    return self.sinks + self.window if self.window and self.capacity else self.capacity

  def init_state(self, batch: int):
    if not self.slots:
      return Stateless()
    return kv.empty(batch, self.slots, self.kv_heads, self.head_dim, self.cache_dtype)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    self._check_state(x, state)
    if self.sequence_sharding is not None:
      self.check_layout(self.sequence_sharding, x.shape[1])
    span = self._entry(self.span, context, x)
    places = self._entry(self.positions, context, x)
    length = state.length if self.slots else None
    at = kv.positions(x.shape[:2], length, reset, valid, self.sequence_sharding)
    q, k, v = self._project(clean(x, valid), at if places is None else places)
    if not self.slots:
      y = self._within(q, k, v, at, reset, valid, span)
    else:
      y, state = self._carry(q, k, v, at, state, reset, valid, span)
    return self.out(y.reshape(*x.shape[:2], -1)), state

  def _entry(self, name, context, x):
    """`context.tokens[name] [B, T]`; None without a name."""
    if name is None:
      return None
    entry = checks.context_entry(self, context, "tokens", name)
    _check_entry(name, entry, x.shape[:2])
    return entry

  def _project(self, x, at):
    q, k, v = (
      proj(x).reshape(*x.shape[:2], -1, self.head_dim)
      for proj in (self.query, self.key, self.value)
    )
    q, k = bounded(q, _LARGEST), bounded(k, _LARGEST)
    if self.query_norm is not None and self.key_norm is not None:
      q, k = self.query_norm(q), self.key_norm(k)
    if self.rotary is not None:
      length = self.window or self.capacity or x.shape[1]
      q, k = (rotate(a, at, self.rotary, length=length) for a in (q, k))
    if self.slots:  # as later calls will see them
      k, v = k.astype(self.cache_dtype), v.astype(self.cache_dtype)
    return q, k, v

  @property
  def _long(self) -> int:
    """Tokens beyond which blocks of keys pay: for memory, and without a window for time."""
    return LONG if self.window is None else 2 * LONG

  def _within(self, q, k, v, at, reset, valid, span):
    """Attention among the call's own tokens."""
    cut = self.sequence_sharding
    cut_time = cut is not None and bool(cut.time)
    if cut_time or (q.shape[1] > self._long and not self.sinks):
      segment = None if reset is None else cumsum(reset.astype(jnp.int32), cut)
      position = at if self.window is not None and valid is not None else None
      marks = Marks(segment, span, valid, position)
      return attend_by_blocks(cut, q, k, v, marks, window=self.window)
    if reset is None and valid is None and span is None and not self.sinks:
      return attend_apart(cut, q, k, v, window=self.window)
    mask = self._own(q.shape[:2], at, reset, valid, span)
    near = valid is None and span is None and not self.sinks  # a window counts valid tokens
    window = self.window if near else None
    ahead = False if span is None else None
    return attend_apart(cut, q, k, v, mask, window=window, ahead=ahead)

  def _own(self, shape, at, reset, valid, span):
    """Which of the call's tokens see which: `[B or 1, T, T] bool`, every token itself."""
    order = jnp.arange(shape[1])
    mask = (order[:, None] >= order[None, :])[None]
    if self.window is not None:
      mask = mask & self._near(at[:, :, None], at[:, None, :])
    if span is not None:
      mask = mask | ((span[:, :, None] == span[:, None, :]) & (span != 0)[:, :, None])
    if reset is not None:
      segment = segments(reset, shape)
      mask = mask & (segment[:, :, None] == segment[:, None, :])
    if valid is not None:
      mask = mask & valid[:, None, :]
    return mask | jnp.eye(shape[1], dtype=bool)[None]

  def _carry(self, q, k, v, at, cache, reset, valid, span):
    """Attention to the cache and the call's own tokens, and the cache afterwards."""
    ring, cut = self.window is not None, self.sequence_sharding
    fresh, stored = self._restarted(cache, at, reset, valid)
    length = at[:, -1] + (1 if valid is None else valid[:, -1])
    new = kv.store(fresh, k, v, at, stored, length, ring=ring, sinks=self.sinks)
    if q.shape[1] == 1 or (not ring and reset is None and span is None):
      mask = jnp.arange(self.slots)[None, None] <= at[..., None]
      y = attend_apart(cut, q, new.keys, new.values, mask, ahead=True)
    else:
      old, broken = (cache, None) if reset is None else _mend(cache)
      mask = self._past(at, cache.length, reset)
      own = self._own(q.shape[:2], at, reset, valid, span)
      own = jnp.broadcast_to(own, (mask.shape[0], *own.shape[1:]))
      k, v = jnp.concatenate([old.keys, k], axis=1), jnp.concatenate([old.values, v], axis=1)
      seen = jnp.concatenate([mask, own], axis=2)
      y = attend_apart(cut, q, k, v, seen, ahead=False if span is None else None)
      if broken is not None:
        broken = broken[:, None] & jnp.any(mask, axis=2)
        broken = broken if valid is None else broken & valid
        y = jnp.where(broken[..., None, None], jnp.nan, y)
    if not ring:
      over = at >= self.slots if valid is None else (at >= self.slots) & valid
      y = jnp.where(over[..., None, None], jnp.nan, y)
    return y, new

  def _restarted(self, cache, at, reset, valid):
    """The cache without the rows that a reset empties, and the tokens after the last reset."""
    if reset is None:
      return cache, valid
    segment = segments(reset, reset.shape)
    last = segment == segment[:, -1:]
    return kv.restart(cache, segment[:, -1] == 0), last if valid is None else last & valid

  def _past(self, at, length, reset):
    """Which cached tokens the call's tokens see: `[B, T, S] bool`."""
    ring = self.window is not None
    known = length if ring else jnp.minimum(length, self.slots)
    held = kv.held(known, self.slots, self.sinks)[:, None, :]
    mask = (held >= 0) & jnp.ones((1, at.shape[1], 1), bool)
    if ring:
      mask = mask & self._near(at[:, :, None], held)
    if reset is not None:
      mask = mask & (segments(reset, reset.shape) == 0)[:, :, None]
    return mask

  def _near(self, at, key):
    """Does the window of a token at position `at` reach the key's, or is that one a sink?"""
    near = at - key < self.window
    return near | (key < self.sinks) if self.sinks else near

  def check_layout(self, sharding: SequenceSharding, length: int | None) -> None:
    if sharding.time and self.capacity:
      raise ValueError(
        f"Attention(capacity={self.capacity}) carries a cache, which is not cut along time, but "
        f"tokens are, over {sharding.time}: use replace(model, capacity=0) to train, rules with "
        "'time': None to generate"
      )
    if sharding.time and self.sinks:
      raise ValueError(
        f"Attention(sinks={self.sinks}) sees its first tokens from everywhere, which a ring over "
        f"{sharding.time} does not bring: use sinks=0, or rules with 'time': None"
      )
    exchanged = sharding.time if sharding.method == "all_to_all" else ()
    heads = sharding.heads + exchanged
    sharding.divide(heads=(self.heads, heads), kv_heads=(self.kv_heads, heads))

  def _check_state(self, x, state):
    if not self.slots:
      if not isinstance(state, Stateless):
        raise ValueError(
          "Attention with capacity=0 carries nothing and takes Stateless(); its state is "
          f"{type(state).__name__}: use replace(model, capacity=n) before init_state and the call"
        )
      return
    expected = jax.eval_shape(lambda: self.init_state(x.shape[0]))
    checks.same_state(state, expected, f"Attention(capacity={self.capacity})")
    if self.window is None and x.shape[1] > self.capacity:
      raise ValueError(
        f"x has T={x.shape[1]} tokens, more than capacity={self.capacity}; "
        f"use replace(model, capacity={x.shape[1]}) or more"
      )


def _mend(cache):
  """The cache with its rows that are not finite made empty, and which they are: a zero weight on
  NaN is NaN, so that such a row would reach the tokens after a reset."""
  finite = [jnp.all(jnp.isfinite(a), axis=(1, 2, 3)) for a in (cache.keys, cache.values)]
  finite = finite[0] & finite[1]
  return kv.restart(cache, finite), ~finite


def _check_options(head_dim, window, sinks, capacity, rotary, positions):
  if window is not None:
    checks.positive(window=window)
  if not isinstance(sinks, int) or sinks < 0 or (sinks and window is None):
    raise ValueError(
      f"sinks={sinks!r} must be an integer >= 0, and window={window} one >= 1 for it"
    )
  if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0:
    raise ValueError(f"capacity={capacity!r} must be an integer >= 0 (0 carries nothing)")
  if rotary is None:
    if positions is not None:
      raise ValueError(f"positions={positions!r} is read by rotary positions only; rotary is None")
    return
  if not isinstance(rotary, Rotary):
    raise TypeError(f"rotary={rotary!r} must be a Rotary, such as Rotary(base=10_000.0), or None")
  if head_dim % 2:
    raise ValueError(
      f"head_dim={head_dim} is odd; rotary positions turn pairs: use {head_dim + 1} or rotary=None"
    )


def _check_entry(name, entry, shape):
  if tuple(entry.shape) != tuple(shape) or not jnp.issubdtype(entry.dtype, jnp.integer):
    raise ValueError(
      f"context.tokens[{name!r}] is {entry.dtype}{list(entry.shape)}; "
      f"it must be integers [B, T] = {list(shape)}"
    )
