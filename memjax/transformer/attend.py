"""Softmax attention in blocks of queries: a block's scores stay in the processor's cache, and keys
that no query of a block sees cost nothing.

Letters: B batch, T queries, S keys, H query heads in G groups (one key and value head each), K
width of a head. Query t stands at key S - T + t.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_BLOCK, _MOST = 128, 8  # about the queries of a block, and at most so many blocks
_UNSEEN = -2e38  # a score whose weight is zero


def attend(q, k, v, mask=None, *, window: int | None = None, ahead: bool | None = False):
  """`softmax(q k^T / sqrt(K)) v` over the keys that each query sees; for reverse mode only.

  The backward pass makes the weights again, from the logarithms of their sums (FlashAttention,
  arXiv 2205.14135).

  Args:
    q: `[B, T, H, K]`.
    k, v: `[B, S, G, K]`, G divides H; cast to the dtype of q.
    mask: `[B or 1, T, S] bool`, the keys that each query sees, at least one. None: its own and all
      before it, within the window.
    window: no query sees a key that stands `window` or more before its own.
    ahead: whether a query may see keys behind its own. None: seldom, which is looked up in the
      mask at run time.

  Returns:
    `[B, T, H, K]` in the dtype of q; the softmax is float32.
  """
  shape, groups = q.shape, k.shape[2]
  q = jnp.moveaxis(q.reshape(*shape[:2], groups, shape[2] // groups, shape[3]), 1, 3)
  k, v = (jnp.swapaxes(a.astype(q.dtype), 1, 2) for a in (k, v))
  y: Any = _attend(window, ahead, q, k, v, mask)
  return jnp.moveaxis(y, 3, 1).reshape(shape)


class _Block(NamedTuple):
  """Queries start..end and the keys low..high that they see; `shift` places a query at its key."""

  start: int
  end: int
  low: int
  high: int
  shift: int
  window: int | None

  def mask(self):
    """`[1, t, s] bool`: a query sees its own key and those before it, within the window."""
    place = jnp.arange(self.start, self.end)[:, None] + self.shift
    key = jnp.arange(self.low, self.high)[None]
    seen = key <= place
    return (seen if self.window is None else seen & (key > place - self.window))[None]


def _blocks(length: int, keys: int, window: int | None, ahead: bool) -> list[_Block]:
  count = min(-(-length // _BLOCK), _MOST)
  size, shift = -(-length // count), keys - length
  blocks = []
  for start in range(0, length, size):
    end = min(start + size, length)
    low = 0 if window is None else max(0, start + shift - window + 1)
    blocks.append(_Block(start, end, low, keys if ahead else end + shift, shift, window))
  return blocks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(window, ahead, q, k, v, mask) -> jax.Array:
  """q `[B, G, H/G, T, K]`; k, v `[B, G, S, K]` -> `[B, G, H/G, T, K]`."""
  return _attend_forward(window, ahead, q, k, v, mask)[0]


def _attend_forward(window, ahead, q, k, v, mask):
  wide = _wide(ahead, mask, _blocks(q.shape[3], k.shape[2], window, False))
  y, sums = _choose(_forward, window, wide, q, k, v, mask)
  return y, (q, k, v, mask, y, sums, wide)


def _attend_backward(window, ahead, saved, dy):
  q, k, v, mask, y, sums, wide = saved
  delta = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
  return *_choose(_backward, window, wide, q, k, v, mask, sums, delta, dy), None


_attend.defvjp(_attend_forward, _attend_backward)


def _wide(ahead, mask, narrow):
  """Whether a query sees a key behind its block's last: known, or a bool made at run time."""
  if ahead is not None:
    return ahead
  beyond = [mask[:, b.start : b.end, b.high :] for b in narrow[:-1]]
  return functools.reduce(jnp.logical_or, map(jnp.any, beyond)) if beyond else False


def _choose(fn, window, wide, q, k, *args):
  narrow, all_ = (_blocks(q.shape[3], k.shape[2], window, ahead) for ahead in (False, True))
  if isinstance(wide, bool):
    return fn(all_ if wide else narrow, q, k, *args)
  branches = (functools.partial(fn, blocks) for blocks in (all_, narrow))
  return jax.lax.cond(wide, *branches, q, k, *args)


def _forward(blocks, q, k, v, mask):
  """Outputs in the dtype of q, and the logarithms `[B, G, H/G, T]` of the weights' sums."""
  outputs, sums = [], []
  for block in blocks:
    s = _scores(block, q, k, mask)
    top = jnp.max(s, axis=-1, keepdims=True)
    p = jnp.exp(s - top)
    total = jnp.sum(p, axis=-1, keepdims=True)
    y = _dot("bgts,bgsk->bgtk", p.astype(v.dtype), v[:, :, block.low : block.high]) / total
    outputs.append(_unfold(y.astype(q.dtype), q))
    sums.append(_unfold(top + jnp.log(total), q)[..., 0])
  return jnp.concatenate(outputs, axis=3), jnp.concatenate(sums, axis=3)


def _backward(blocks, q, k, v, mask, sums, delta, dy):
  """Gradients of q, k and v."""
  dq, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for block in blocks:
    rows, keys = slice(block.start, block.end), slice(block.low, block.high)
    mine = _fold(q[..., rows, :]), _fold(dy[..., rows, :])
    p = jnp.exp(_scores(block, q, k, mask) - _fold(sums[..., rows, None]))
    dp = _dot("bgtk,bgsk->bgts", mine[1], v[:, :, keys])
    ds = (p * (dp - _fold(delta[..., rows, None])) * _scale(q)).astype(q.dtype)
    dq.append(_unfold(_dot("bgts,bgsk->bgtk", ds, k[:, :, keys]).astype(q.dtype), q))
    around = ((0, 0), (0, 0), (block.low, k.shape[2] - block.high), (0, 0))
    dk += jnp.pad(_dot("bgts,bgtk->bgsk", ds, mine[0]), around)
    dv += jnp.pad(_dot("bgts,bgtk->bgsk", p.astype(v.dtype), mine[1]), around)
  return jnp.concatenate(dq, axis=3), dk.astype(k.dtype), dv.astype(v.dtype)


def _scores(block, q, k, mask):
  """A block's scores `[B, G, H/G t, s]` float32, very low where a query does not see a key."""
  rows, keys = slice(block.start, block.end), slice(block.low, block.high)
  seen = block.mask() if mask is None else mask[:, rows, keys]
  s = _dot("bgtk,bgsk->bgts", _fold(q[..., rows, :]), k[:, :, keys]) * _scale(q)
  by_head = s.reshape(*q.shape[:3], *seen.shape[1:])
  return jnp.where(seen[:, None, None], by_head, _UNSEEN).reshape(s.shape)


def _fold(x):
  """`[B, G, H/G, t, ...] -> [B, G, H/G t, ...]`: the heads of a group are more queries."""
  return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _unfold(x, q):
  return x.reshape(*q.shape[:3], -1, x.shape[-1])


def _scale(q) -> float:
  return q.shape[-1] ** -0.5


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
