"""The cache of keys and values behind `Attention`: a line, or a ring for a window.

A token with position p (valid tokens since the reset before it) lies in slot p of a line and in
slot p mod S of a ring, so `length` alone says what every slot holds; a ring may begin after some
sinks, which lie as in a line. Slots that hold no token are zero after every reset: what a row was
before, NaN included, never comes back.
"""

import jax
import jax.numpy as jnp

from memjax.core import as_state, leaf, segments, select
from memjax.core.sequence_sharding import SequenceSharding, cummax, cumsum


@as_state
class KVCache:
  """Keys (rotated) and values of past tokens.

  Attributes:
    keys, values: `[B, S, Hkv, K]`.
    length: `[B] int32`, valid tokens since the last reset, stored or not.
  """

  keys: jax.Array = leaf("window", "heads", "kv")
  values: jax.Array = leaf("window", "heads", "kv")
  length: jax.Array = leaf()


def empty(batch: int, slots: int, heads: int, dim: int, dtype) -> KVCache:
  """A cache without tokens."""
  shape = (batch, slots, heads, dim)
  return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((batch,), jnp.int32))


def restart(cache: KVCache, keep: jax.Array) -> KVCache:
  """The cache with the rows where `keep [B]` is false made empty."""
  return select(keep, cache, jax.tree.map(jnp.zeros_like, cache))


def positions(
  shape: tuple[int, int], length, reset, valid, sharding: SequenceSharding | None = None
) -> jax.Array:
  """Position of every token: how many valid tokens of its segment lie before it.

  Args:
    shape: (B, T).   length: `[B] int32` tokens already in the cache, or None.
    reset, valid: `[B, T] bool` or None.
    sharding: how the tokens lie on a mesh.

  Returns:
    `[B, T] int32`, or `[1, T]` where rows cannot differ.
  """
  if valid is None:
    before = jnp.arange(shape[1], dtype=jnp.int32)[None]
  else:
    before = cumsum(valid.astype(jnp.int32), sharding) - valid
  carried = jnp.zeros((), jnp.int32) if length is None else length[:, None]
  if reset is None:
    return before + carried
  start = cummax(jnp.broadcast_to(jnp.where(reset, before, 0), shape), sharding)
  if length is None:
    return before - start
  return before - start + jnp.where(segments(reset, shape) == 0, carried, 0)


def held(length: jax.Array, slots: int, sinks: int = 0) -> jax.Array:
  """Position `[B, S] int32` of the token in every slot after `length [B]` tokens, negative where
  there is none. A line that is over-full holds the first S tokens: give it min(length, S)."""
  last = length[:, None] - 1
  slot = jnp.arange(slots, dtype=jnp.int32)[None]
  ring = last - (last - slot) % (slots - sinks)
  ring = jnp.where(ring < sinks, -1, ring)  # the ring begins behind the sinks
  return jnp.where(slot < sinks, jnp.where(slot <= last, slot, -1), ring)


def store(
  cache: KVCache, keys, values, position, stored, length, *, ring: bool, sinks: int = 0
) -> KVCache:
  """Writes the tokens of a call.

  Args:
    keys, values: `[B, T, Hkv, K]`.
    position: `[B, T] int32`.
    stored: `[B, T] bool`, tokens to keep, or None for all.
    length: `[B] int32`, positions in use afterwards.
    ring: a full ring drops its oldest tokens; a full line takes no more.
    sinks: tokens before the ring that stay.
  """
  slots = cache.keys.shape[1]
  if ring:
    stays, size = position < sinks, slots - sinks
    fits = stays | (position >= length[:, None] - size)
    slot = jnp.where(stays, position, sinks + (position - sinks) % size)
  else:
    fits, slot = position < slots, position
  slot = jnp.where(fits if stored is None else fits & stored, slot, slots)  # out of range: dropped
  put = jax.vmap(lambda a, s, new: a.at[s].set(new.astype(a.dtype), mode="drop"))
  return KVCache(put(cache.keys, slot, keys), put(cache.values, slot, values), length)
