"""A corridor: a cue at the entrance says where to turn at its end (the T-maze of Bakker 2001, as in
"ELMUR", Cherepanov, Kovalev, Panov 2025, arXiv 2510.07151).

A step is two numbers: the cue, 1 or -1 at step 0 and 0 after it; and 1 at the last step, the
junction, where the answer is due: 1 for a cue of 1, else 0. State needed: a bit, for ever.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Corridors:
  """Cues `[B]`, 1 or -1, and lengths `[B]` in steps; int32. The steps themselves: `steps`."""

  cue: jax.Array
  length: jax.Array

  @property
  def answer(self) -> jax.Array:
    """`[B]` int32, 0 or 1."""
    return (self.cue > 0).astype(jnp.int32)


def sample(key: jax.Array, batch: int, lengths: tuple[int, ...]) -> Corridors:
  """`batch` corridors, each of one of the `lengths`."""
  key_cue, key_length = jax.random.split(key)
  cue = 2 * jax.random.bernoulli(key_cue, 0.5, (batch,)).astype(jnp.int32) - 1
  return Corridors(cue, jax.random.choice(key_length, jnp.asarray(lengths, jnp.int32), (batch,)))


def steps(corridors: Corridors, first, count: int) -> jax.Array:
  """Steps first..first + count - 1, `[B, count, 2]` float32; zeros after the end.

  A corridor of any length is walked in pieces, of which `first` may be traced.
  """
  at = (first + jnp.arange(count))[None]
  cue = jnp.where(at == 0, corridors.cue[:, None], 0)
  junction = at == corridors.length[:, None] - 1
  return jnp.stack([cue.astype(jnp.float32), junction.astype(jnp.float32)], axis=-1)
