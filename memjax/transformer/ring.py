"""Exact attention over tokens that are cut over devices along time: a ring.

Each device keeps its queries; keys and values go around (arXiv 2310.01889) and meet the queries in
blocks, so that a device holds nothing larger than its piece but one block's scores. The softmax
runs online, in float32. The backward pass is a second ring, on which the gradients of keys and
values travel with them.

Which keys a query sees is told by marks of both; a pair of blocks without any costs nothing. Under
a causal mask the first device would then have least to do, so each works on an early and a late
half piece instead (zigzag), and all have the same.

Letters, of one device: b rows, t tokens, h query heads in g groups of r, d width of a head, m
blocks of c tokens.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memjax.core.sequence_sharding import SequenceSharding
from memjax.core.table_sharding import part
from memjax.transformer.blocks import (
  Rule,
  deal,
  deal_back,
  join,
  places,
  split,
  split_keys,
  split_queries,
)

BLOCK = 512  # tokens of a block, at most
_UNSEEN = -2e38  # a score whose weight is zero
_LAST = jnp.iinfo(jnp.int32).max  # the place of padding, behind all queries

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Marks(NamedTuple):
  """What tells which keys a query sees: `[B, T]` each, None where it makes no difference.

  Attributes:
    segment: int32; tokens see their own segment only.
    span: int32; tokens of one span other than 0 see each other both ways.
    valid: bool; a token that is not valid is seen by itself alone.
    position: int32, what a window counts; None: tokens.
  """

  segment: jax.Array | None = None
  span: jax.Array | None = None
  valid: jax.Array | None = None
  position: jax.Array | None = None


def ring_attend(
  cut: SequenceSharding, q, k, v, marks: Marks | None = None, *, window: int | None = None,
  block: int = BLOCK,
) -> jax.Array:  # fmt: skip
  """`softmax(q k^T / sqrt(K)) v` over the keys that each query sees; for reverse mode only.

  Args:
    cut: how the tokens lie; its `time` may be empty.
    q: `[B, T, H, K]`.   k, v: `[B, T, G, K]`, G divides H; cast to the dtype of q.
    marks: without them a query sees itself and all before it.
    window: no query sees a key that stands `window` or more before it.
    block: the scores of so many queries and keys stand at once.

  Returns:
    `[B, T, H, K]` in the dtype of q.

  Raises:
    ValueError: B, T, H or G does not divide.
  """
  batch, length, heads, _ = q.shape
  cut.divide(batch=(batch, cut.batch), length=(length, cut.time))
  cut.divide(heads=(heads, cut.heads), kv_heads=(k.shape[2], cut.heads))
  marks, piece, hops = marks or Marks(), length // cut.pieces, cut.pieces
  if window is not None and marks.span is None and marks.position is None:
    hops = min(hops, 1 + -(-(window - 1) // piece))
  zigzag = hops == cut.pieces > 1 and window is None and piece % 2 == 0
  rule = Rule(cut, window, hops, zigzag, block)
  y: Any = _ring(rule, q, k.astype(q.dtype), v.astype(q.dtype), marks)
  return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(rule: Rule, q, k, v, marks: Marks) -> jax.Array:
  return _ring_forward(rule, q, k, v, marks)[0]


def _ring_forward(rule, q, k, v, marks):
  def local(q, k, v, marks):
    kept = q, k, v, marks = deal(rule, (q, k, v, marks))
    length, groups = k.shape[1:3]
    mine, keys = split_queries(rule, q, groups), (split_keys(rule, k), split_keys(rule, v))
    flags = jax.tree.map(functools.partial(split, rule), marks)
    top = jnp.full(mine.shape[:-1], _UNSEEN, jnp.float32)
    state = jnp.zeros(mine.shape, jnp.float32), top, jnp.zeros_like(top)
    state, _ = _around(rule, length, _forward_pair, (mine,), flags, state, keys, ())
    y, top, total = state
    total = jnp.where(total > 0, total, 1)  # padding has seen nothing
    y = join((y / total[..., None]).astype(q.dtype), length)
    return deal_back(rule, y), kept, join(top + jnp.log(total), length)

  tokens, flags, heads = _specs(rule.cut)
  into, out = (tokens, tokens, tokens, flags), (tokens, (tokens, tokens, tokens, flags), heads)
  y, kept, sums = rule.cut.map(local, into, out)(q, k, v, marks)
  return y, (*kept, y, sums)


def _ring_backward(rule, saved, dy):
  def local(q, k, v, marks, y, sums, dy):
    delta = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    dy, delta = deal(rule, (dy, delta))
    length, groups = k.shape[1:3]
    mine = tuple(split_queries(rule, a, groups) for a in (q, dy, sums, delta))
    keys = split_keys(rule, k), split_keys(rule, v)
    flags = jax.tree.map(functools.partial(split, rule), marks)
    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (mine[0], *keys))
    dq, (dk, dv) = _around(
      rule, length, _backward_pair, mine, flags, zeros[0], keys, zeros[1:]
    )  # fmt: skip
    made = join(dq, length), join(dk[:, :, :, None], length), join(dv[:, :, :, None], length)
    return deal_back(rule, tuple(a.astype(q.dtype) for a in made))

  tokens, flags, heads = _specs(rule.cut)
  into = tokens, tokens, tokens, flags, tokens, heads, tokens
  return *rule.cut.map(local, into, (tokens, tokens, tokens))(*saved, dy), None


_ring.defvjp(_ring_forward, _ring_backward)


def _specs(cut: SequenceSharding):
  """Of `[B, T, H, K]`, of marks, of `[B, T, H]`."""
  heads = part(cut.heads)
  return cut.spec(heads, None), cut.spec(), cut.spec(heads)


# ---- one device: its queries, and the keys that come by


def _around(rule, length, pair, mine, flags, sums, keys, key_sums):
  """Every pair of a block of queries and one of keys: `pair(mine, sums, keys, key_sums, seen)`.

  Args:
    mine: of the queries, `[m, ...]` each.   flags: marks of queries and, as first ones, keys.
    sums, key_sums: what `pair` returns anew; `key_sums` go around with the keys, and come home.
  """
  cut = rule.cut
  # Tied to the queries: in a scan over layers JAX would take what depends on no layer, such as the
  # masks of all pairs of blocks, out of the scan, and keep all of it at once for the backward pass.
  piece, mine, flags, sums, key_sums = jax.lax.optimization_barrier(
    (cut.piece(), mine, flags, sums, key_sums)
  )
  at = places(rule, piece, length, padding=-1)

  def meet(hop, sums, keys, key_sums):
    keys_at = places(rule, (piece - hop) % cut.pieces, length, padding=_LAST)
    keys = (*keys, keys_at)

    def queries(key_sums, inputs):
      mine, flags, at, sums = inputs

      def one(sums, inputs):
        (keys, key_flags, keys_at), key_sums = inputs
        seen = _seen(rule, flags, at, key_flags, keys_at)
        run = functools.partial(pair, mine, keys, seen)
        return jax.lax.cond(jnp.any(seen), run, lambda *same: same, sums, key_sums)

      sums, key_sums = jax.lax.scan(one, sums, (keys, key_sums))
      return key_sums, sums

    key_sums, sums = jax.lax.scan(queries, key_sums, (mine, flags, at, sums))
    return sums, key_sums

  def hop(carry, i):
    sums, keys, key_sums = carry
    coming = cut.shift(keys)  # while these are worked on
    sums, key_sums = meet(i, sums, keys, key_sums)
    return (sums, coming, cut.shift(key_sums)), None

  last, carry = rule.hops - 1, (sums, (keys, flags), key_sums)
  if last:
    carry, _ = jax.lax.scan(hop, carry, jnp.arange(last))
  sums, key_sums = meet(last, *carry)
  return sums, cut.shift(key_sums, -last) if last else key_sums


def _forward_pair(mine, keys, seen, sums, key_sums):
  (q,), (k, v), (y, top, total) = mine, keys, sums
  s = _scores(q, k, seen)
  new = jnp.maximum(top, jnp.max(s, axis=-1))
  p, old = jnp.exp(s - new[..., None]), jnp.exp(top - new)
  y = y * old[..., None] + _dot("bgrts,bgsd->bgrtd", p.astype(v.dtype), v)
  return (y, new, total * old + jnp.sum(p, axis=-1)), key_sums


def _backward_pair(mine, keys, seen, dq, key_sums):
  (q, dy, sums, delta), (k, v), (dk, dv) = mine, keys, key_sums
  p = jnp.exp(_scores(q, k, seen) - sums[..., None])
  dp = _dot("bgrtd,bgsd->bgrts", dy, v)
  ds = (p * (dp - delta[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
  dk += _dot("bgrts,bgrtd->bgsd", ds, q)
  dv += _dot("bgrts,bgrtd->bgsd", p.astype(dy.dtype), dy)
  return dq + _dot("bgrts,bgsd->bgrtd", ds, k), (dk, dv)


def _scores(q, k, seen):
  """`[b, g, r, t, s]` float32, very low where a query does not see a key."""
  s = _dot("bgrtd,bgsd->bgrts", q, k) * q.shape[-1] ** -0.5
  return jnp.where(seen[:, None, None], s, _UNSEEN)


def _seen(rule, marks: Marks, at, of_keys: Marks, keys_at):
  """`[b or 1, t, s] bool`: as `Attention` has it (`_own`)."""

  def pairs(name):
    return getattr(marks, name)[:, :, None], getattr(of_keys, name)[:, None, :]

  ahead = (at[:, None] - keys_at[None])[None]
  seen = ahead >= 0
  if rule.window is not None:
    far = ahead
    if marks.position is not None:
      own, other = pairs("position")
      far = own - other
    seen &= far < rule.window
  if marks.span is not None:
    own, other = pairs("span")
    seen |= (own == other) & (own != 0)
  if marks.segment is not None:
    own, other = pairs("segment")
    seen &= own == other
  if of_keys.valid is not None:
    seen &= of_keys.valid[:, None, :]
  return seen | (ahead == 0)
