"""Recall across segments: keys and their values are told in the first segment, noise fills the next
ones, and the last segment ends with one of the keys, at which its value is due. Or the key is asked
first, and pairs are told after it.

Ids: 0 to noise - 1 are noise, then keys, then values. State needed: log2(values) bits a pair, more
for which key is whose.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recalls:
  """Ids `[B, S, g] int32` by segments, the key last; answers `[B] int32`, the value's id."""

  ids: jax.Array
  answer: jax.Array


@dataclasses.dataclass(frozen=True)
class World:
  """Numbers of ids of each kind."""

  noise: int = 4
  keys: int = 4
  values: int = 4

  @property
  def vocab(self) -> int:
    return self.noise + self.keys + self.values


def sample(
  key: jax.Array, batch: int, world: World, *, segment: int, gap: int = 0, pairs: int = 1
) -> Recalls:
  """`batch` texts of `2 + gap` segments of g ids; the pairs stand anywhere in the first.

  No key is told twice; a key is followed at once by its value.

  Raises:
    ValueError: the pairs do not fit into a segment, or there are fewer keys.
  """
  if not 1 <= pairs <= min(world.keys, segment // 2):
    raise ValueError(
      f"pairs={pairs} must be from 1 to {min(world.keys, segment // 2)}, with keys={world.keys} "
      f"and segment={segment}"
    )
  parts = jax.random.split(key, 5)
  ids = jax.random.randint(parts[0], (batch, 2 + gap, segment), 0, world.noise)
  keys, values = _pairs(parts[1], parts[2], batch, world, pairs)
  places = jnp.argsort(jax.random.uniform(parts[3], (batch, segment // 2)), axis=1)[:, :pairs]
  rows = jnp.arange(batch)
  ids = (
    ids.at[rows[:, None], 0, 2 * places].set(keys).at[rows[:, None], 0, 2 * places + 1].set(values)
  )
  asked = jax.random.randint(parts[4], (batch,), 0, pairs)
  ids = ids.at[:, -1, -1].set(keys[rows, asked])
  return Recalls(ids.astype(jnp.int32), values[rows, asked].astype(jnp.int32))


def sample_asked(key: jax.Array, batch: int, world: World, *, segment: int, told: int) -> Recalls:
  """`batch` texts of `1 + told` segments: the first one names a key, at its beginning, and each of
  the others tells a pair, anywhere in it; one of them is the pair of that key.

  No key is told twice. Who knows one segment's pair only, whichever, is right in a share of
  `1 / told + (1 - 1 / told) / values`.

  Raises:
    ValueError: there are fewer keys, or a pair does not fit into a segment.
  """
  if not (1 <= told <= world.keys and segment >= 2):
    raise ValueError(
      f"told={told} must be from 1 to keys={world.keys}, and segment={segment} at least 2"
    )
  parts = jax.random.split(key, 5)
  ids = jax.random.randint(parts[0], (batch, 1 + told, segment), 0, world.noise)
  keys, values = _pairs(parts[1], parts[2], batch, world, told)
  rows, order = jnp.arange(batch)[:, None], jnp.arange(1, 1 + told)[None]
  places = jax.random.randint(parts[3], (batch, told), 0, segment - 1)
  ids = ids.at[rows, order, places].set(keys).at[rows, order, places + 1].set(values)
  asked = jax.random.randint(parts[4], (batch, 1), 0, told)
  ids = ids.at[:, 0, 0].set(keys[rows, asked][:, 0])
  return Recalls(ids.astype(jnp.int32), values[rows, asked][:, 0].astype(jnp.int32))


def _pairs(key, value_key, batch: int, world: World, count: int) -> tuple[jax.Array, jax.Array]:
  """Ids of keys, of which none comes twice in a row, and of values, `[batch, count]`."""
  keys = jnp.argsort(jax.random.uniform(key, (batch, world.keys)), axis=1)[:, :count]
  values = jax.random.randint(value_key, (batch, count), 0, world.values)
  return keys + world.noise, values + world.noise + world.keys
