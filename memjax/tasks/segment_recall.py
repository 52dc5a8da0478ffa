"""Recall across segments: keys and their values are told in the first segment, noise fills the next
ones, and the last segment ends with one of the keys, at which its value is due.

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
  keys = jnp.argsort(jax.random.uniform(parts[1], (batch, world.keys)), axis=1)[:, :pairs]
  values = jax.random.randint(parts[2], (batch, pairs), 0, world.values)
  keys, values = keys + world.noise, values + world.noise + world.keys
  places = jnp.argsort(jax.random.uniform(parts[3], (batch, segment // 2)), axis=1)[:, :pairs]
  rows = jnp.arange(batch)
  ids = (
    ids.at[rows[:, None], 0, 2 * places].set(keys).at[rows[:, None], 0, 2 * places + 1].set(values)
  )
  asked = jax.random.randint(parts[4], (batch,), 0, pairs)
  ids = ids.at[:, -1, -1].set(keys[rows, asked])
  return Recalls(ids.astype(jnp.int32), values[rows, asked].astype(jnp.int32))
