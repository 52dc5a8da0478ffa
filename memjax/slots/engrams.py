"""Engrams: memories that live as long as they are of use, linked by how often they fired together.

The store of Memoria (arXiv 2310.03052); nothing here has a gradient.

B batch, E engrams, D width, N new ones, S and L short-term and long-term ones reminded, R = S + L.
"""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.core import as_state, bounded, leaf
from memjax.slots import store

NONE, WORKING, SHORT, LONG = 0, 1, 2, 3


@as_state
class Engrams:
  """The engrams of a row, in any order.

  Attributes:
    data: `[B, E, D]` float32.
    kind: `[B, E] int8`: NONE, WORKING, SHORT or LONG; a free place is NONE and zero everywhere.
    life: `[B, E]` float32, segments that it has left.
    counts: `[B, E, E] int32`, how often two fired together, on the diagonal how often one fired.
    born: `[B, E] int32`, from 1, larger for the younger.
  """

  data: jax.Array = leaf("slots", "embed")
  kind: jax.Array = leaf("slots")
  life: jax.Array = leaf("slots")
  counts: jax.Array = leaf("slots", "slots")
  born: jax.Array = leaf("slots")


@as_state
class Reminded:
  """Places `[B, R] int32` of the engrams reminded, and which of them there are, `[B, R] bool`."""

  index: jax.Array = leaf("slots")
  seen: jax.Array = leaf("slots")


def empty(batch: int, size: int, dim: int) -> Engrams:
  """E = `size` free places."""
  of = lambda dtype, *shape: jnp.zeros((batch, size, *shape), dtype)  # noqa: E731
  return Engrams(
    of(jnp.float32, dim), of(jnp.int8), of(jnp.float32), of(jnp.int32, size), of(jnp.int32)
  )


def add(engrams: Engrams, items: jax.Array, life: float) -> Engrams:
  """`items [B, N, D]` as working engrams with `life`, the first the oldest.

  Where places are missing, the long-term engrams with the least life make room, of equals the
  oldest; short-term engrams and items must fit without them.
  """
  items, new = _values(items), items.shape[1]
  missing = new - jnp.sum(engrams.kind == NONE, axis=1, dtype=jnp.int32)
  engrams = forget(engrams, _weakest(engrams, missing))
  free = engrams.kind == NONE
  place = jnp.cumsum(free, axis=1, dtype=jnp.int32) - 1  # among the free ones
  here = free & (place < new)
  taken = store.take(items, jnp.clip(place, 0, new - 1))
  born = jnp.max(engrams.born, axis=1, keepdims=True) + 1 + place
  return Engrams(
    data=jnp.where(here[:, :, None], taken, engrams.data),
    kind=jnp.where(here, WORKING, engrams.kind).astype(jnp.int8),
    life=jnp.where(here, life, engrams.life),
    counts=engrams.counts,
    born=jnp.where(here, born, engrams.born),
  )


def remind(
  engrams: Engrams, items: jax.Array, *, short: int, long: int, depth: int,
  key: jax.Array | None = None,
) -> Reminded:  # fmt: skip
  """What the working memories `items [B, N, D]` remind of.

  The `short` nearest short-term engrams; from each of them the long-term one that it fired with
  most (ties at random, without a `key` the oldest); from there `depth` times on to the one, not yet
  found by any, that the last fired with most (ties the oldest); of all found the `long` nearest.
  Near is a small mean over the items of |item - engram|^2: up to a constant, the distance from the
  items' mean.
  """
  middle = jnp.mean(_values(items), axis=1, keepdims=True)
  near = -jnp.sum(jnp.square(_values(engrams.data) - middle), axis=-1)
  short_index, short_seen = _nearest(near, engrams.kind == SHORT, short)
  found = _walk(engrams, short_index, short_seen, depth, key)
  long_index, long_seen = _nearest(near, found, long)
  both = lambda a, b: jnp.concatenate([a, b], axis=1)  # noqa: E731
  return Reminded(both(short_index, long_index), both(short_seen, long_seen))


def fire(engrams: Engrams, reminded: Reminded) -> Engrams:
  """Counts that all working and all reminded engrams fired together."""
  fired = (engrams.kind == WORKING) | marked(reminded.index, reminded.seen, engrams.kind.shape[1])
  return dataclasses.replace(
    engrams, counts=engrams.counts + (fired[:, :, None] & fired[:, None, :])
  )


def settle(engrams: Engrams, reminded: Reminded, gain: jax.Array, capacity: int) -> Engrams:
  """The end of a segment: life grows by `gain [B, R]` and falls by one, kinds move on.

  Working engrams become short-term ones; of these the youngest `capacity` stay, the others become
  long-term ones. Without life left an engram is gone.
  """
  here = _where(reminded.index, reminded.seen, engrams.kind.shape[1])
  gain = jnp.where(here, jax.lax.stop_gradient(gain).astype(jnp.float32)[:, :, None], 0)
  life = engrams.life + jnp.sum(gain, axis=1) - 1
  kind = jnp.where(engrams.kind == WORKING, SHORT, engrams.kind)
  kind = jnp.where((kind == SHORT) & ~_youngest(engrams.born, kind == SHORT, capacity), LONG, kind)
  moved = dataclasses.replace(engrams, kind=kind.astype(jnp.int8), life=life)
  return forget(moved, (kind == NONE) | (life <= 0))


def forget(engrams: Engrams, gone: jax.Array) -> Engrams:
  """Without the engrams `gone [B, E]`, whose places are free."""

  def clear(a):
    return jnp.where(gone.reshape(gone.shape + (1,) * (a.ndim - 2)), jnp.zeros((), a.dtype), a)

  cleared = jax.tree.map(clear, engrams)
  return dataclasses.replace(cleared, counts=jnp.where(gone[:, None, :], 0, cleared.counts))


def marked(index: jax.Array, seen: jax.Array, size: int) -> jax.Array:
  """Which of `size` places are among `index [B, K]` where `seen [B, K]`: `[B, E] bool`."""
  return jnp.any(_where(index, seen, size), axis=1)


def _values(a) -> jax.Array:
  """`a` without gradient, such that its squares are finite."""
  return bounded(jax.lax.stop_gradient(a).astype(jnp.float32), 1e15)


def _where(index, seen, size):
  return (index[:, :, None] == jnp.arange(size).reshape(1, 1, -1)) & seen[:, :, None]


def _nearest(near, among, count: int):
  """Places of the `count` engrams of `among [B, E]` that are nearest, and whether there are."""
  best, index = jax.lax.top_k(jnp.where(among, near, -jnp.inf), min(count, near.shape[1]))
  return index.astype(jnp.int32), best > -jnp.inf


def _walk(engrams, start, seen, depth: int, key) -> jax.Array:
  """Long-term engrams `[B, E] bool` found from the places `start [B, S]` where `seen`."""
  long, size = engrams.kind == LONG, engrams.kind.shape[1]
  oldest = -engrams.born[:, None, :]
  first = oldest
  if key is not None:
    first = jax.random.randint(key, (*start.shape, size), 0, jnp.iinfo(jnp.int32).max)

  def go_on(last, alive, found, order):
    """From places `last [B, S]` to those linked most among the long-term ones not found."""
    reach = (long & ~found)[:, None, :]
    counts = jnp.where(reach, store.take(engrams.counts, last), -1)
    best = counts == jnp.max(counts, axis=2, keepdims=True)
    last = jnp.argmax(jnp.where(reach & best, order, jnp.iinfo(jnp.int32).min), axis=2)
    alive &= jnp.any(reach, axis=2)
    return last.astype(jnp.int32), alive, found | marked(last, alive, size)

  def step(_, carry):
    last, alive, found = carry
    return go_on(last, alive, found, oldest)

  carry = go_on(start, seen, jnp.zeros_like(long), first)
  return jax.lax.fori_loop(0, depth, step, carry)[2]


def _weakest(engrams, count) -> jax.Array:
  """The `count [B]` long-term engrams with the least life, of equals the oldest: `[B, E] bool`."""
  long, life = engrams.kind == LONG, jax.lax.stop_gradient(engrams.life)
  weaker = _pairs(jnp.less, life) | (_pairs(jnp.equal, life) & _pairs(jnp.less, engrams.born))
  return long & (_count(long, weaker) < count[:, None])


def _youngest(born, among, count: int) -> jax.Array:
  """Which of `among [B, E]` are its `count` youngest."""
  return among & (_count(among, _pairs(jnp.greater, born)) < count)


def _pairs(compare, a) -> jax.Array:
  """`[B, E, E]`: how the second of a pair compares with the first."""
  return compare(a[:, None, :], a[:, :, None])


def _count(among, pairs) -> jax.Array:
  """For each engram the number of those in `among` that are so: `[B, E]`."""
  return jnp.sum(among[:, None, :] & pairs, axis=2, dtype=jnp.int32)
