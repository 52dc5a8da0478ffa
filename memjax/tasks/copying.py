"""The copy task of "Neural Turing Machines" (Graves, Wayne, Danihelka 2014, arXiv 1410.5401).

n vectors of random bits, a delimiter on a channel of its own, then n empty frames at which the
vectors are due in order. A frame's target is due at that frame. State needed: bits * n.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copies:
  """Inputs `[B, T, bits + 1]`, targets `[B, T, bits]` of 0 and 1, mask `[B, T]`: where due."""

  inputs: jax.Array
  targets: jax.Array
  mask: jax.Array


def sample(key: jax.Array, batch: int, *, shortest: int = 1, longest: int = 20, bits: int = 8):
  """`batch` sequences of n ~ U{shortest..longest} vectors, in `T = 2 longest + 1` frames."""
  key_n, key_bits = jax.random.split(key)
  n = jax.random.randint(key_n, (batch, 1), shortest, longest + 1)
  word = jax.random.bernoulli(key_bits, 0.5, (batch, longest, bits)).astype(jnp.float32)
  t = jnp.arange(2 * longest + 1).reshape(1, -1)
  at = jnp.where(t < n, t, jnp.clip(t - n - 1, 0, longest - 1))
  vectors = jnp.take_along_axis(word, at[:, :, None], axis=1)
  shown, mask = (t < n)[:, :, None], (t > n) & (t <= 2 * n)
  delimiter = (t == n)[:, :, None].astype(jnp.float32)
  inputs = jnp.concatenate([vectors * shown, delimiter], axis=-1)
  return Copies(inputs, vectors * mask[:, :, None], mask)


def wrong_bits(logits: jax.Array, copies: Copies) -> jax.Array:
  """Wrong bits of each sequence after rounding, `[B]`."""
  wrong = (logits > 0) != (copies.targets > 0.5)
  return jnp.sum(wrong & copies.mask[:, :, None], axis=(1, 2))
