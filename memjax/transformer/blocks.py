"""Tokens of one device in blocks, for `ring`; and which device works on which (zigzag).

Letters as there: b rows, t tokens, h query heads in g groups of r, d width of a head, m blocks of c
tokens.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from memjax.core.sequence_sharding import SequenceSharding


class Rule(NamedTuple):
  """How a call goes; static. A device meets `hops` pieces of keys, its own first."""

  cut: SequenceSharding
  window: int | None
  hops: int
  zigzag: bool
  block: int


# ---- blocks


def _count(rule: Rule, length: int) -> tuple[int, int]:
  """m and c."""
  count = -(-length // rule.block)
  return count, -(-length // count)


def split(rule: Rule, a, fill=0):
  """`[b, t, ...]` as `[m, b, c, ...]`, padded by `fill`."""
  count, size = _count(rule, a.shape[1])
  around = [(0, 0)] * a.ndim
  around[1] = (0, count * size - a.shape[1])
  a = jnp.pad(a, around, constant_values=fill)
  return jnp.moveaxis(a.reshape(a.shape[0], count, size, *a.shape[2:]), 1, 0)


def split_queries(rule: Rule, a, groups: int):
  """`[b, t, h, ...]` as `[m, b, g, r, c, ...]`."""
  a = split(rule, a)
  a = a.reshape(*a.shape[:3], groups, a.shape[3] // groups, *a.shape[4:])
  return jnp.moveaxis(a, 2, 4)


def split_keys(rule: Rule, a):
  """`[b, t, g, d]` as `[m, b, g, c, d]`."""
  return jnp.swapaxes(split(rule, a), 2, 3)


def join(a, length: int):
  """`[m, b, g, r, c, ...]` as `[b, t, h, ...]`."""
  a = jnp.moveaxis(jnp.moveaxis(a, 4, 1), 2, 0)  # [b, m, c, g, r, ...]
  a = a.reshape(a.shape[0], -1, a.shape[3] * a.shape[4], *a.shape[5:])
  return a[:, :length]


def places(rule: Rule, piece, length: int, padding: int):
  """`[m, c] int32`: where in the sequence the tokens of a piece stand."""
  if rule.zigzag:
    half = jnp.arange(length // 2)
    late = 2 * rule.cut.pieces - 1 - piece
    at = jnp.concatenate([piece * half.size + half, late * half.size + half])
  else:
    at = piece * length + jnp.arange(length)
  return split(rule, at[None].astype(jnp.int32), padding)[:, 0]


# ---- zigzag: of 2n half pieces, device i works on the i-th and the i-th last


def _halves(cut: SequenceSharding):
  """Where the first and the second half of every device's piece go."""
  n = cut.pieces
  return ([(i, min(h, 2 * n - 1 - h)) for i in range(n) for h in (2 * i + second,)]
          for second in (0, 1))  # fmt: skip


def deal(rule: Rule, tree: Any):
  """Arrays `[b, t, ...]` of own tokens to those that this device works on."""
  if not rule.zigzag:
    return tree
  even, moves = rule.cut.piece() % 2 == 0, list(_halves(rule.cut))

  def move(a):
    halves = jnp.split(a, 2, axis=1)
    a, b = (jax.lax.ppermute(h, rule.cut.time, m) for h, m in zip(halves, moves, strict=True))
    return jnp.concatenate([jnp.where(even, a, b), jnp.where(even, b, a)], axis=1)

  return jax.tree.map(move, tree)


def deal_back(rule: Rule, tree: Any):
  """The reverse of `deal`."""
  if not rule.zigzag:
    return tree
  even, moves = rule.cut.piece() % 2 == 0, list(_halves(rule.cut))

  def back(a):
    low, high = jnp.split(a, 2, axis=1)
    halves = jnp.where(even, low, high), jnp.where(even, high, low)
    home = ([(b, a) for a, b in move] for move in moves)
    halves = [jax.lax.ppermute(h, rule.cut.time, m) for h, m in zip(halves, home, strict=True)]
    return jnp.concatenate(halves, axis=1)

  return jax.tree.map(back, tree)
