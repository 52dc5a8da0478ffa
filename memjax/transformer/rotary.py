"""Rotary positions (RoFormer, arXiv 2104.09864)."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
  """Turns each pair of features by an angle that grows with the position.

  With w_j = base^(-2j / K), the pair (x_j, x_{j + K/2}) at position p is turned by p w_j, so that
  the product of a query and a key depends on the difference of their positions only. Pairs are half
  the width apart (GPT-NeoX, Llama); the paper pairs neighbours: a permutation of the features.

  Args:
    x: `[B, T, H, K]`, K even.
    positions: `[B, T] int32`, or `[1, T]` where rows share them.
    base: of the geometric series of wavelengths.

  Returns:
    `[B, T, H, K]` in the dtype of x; the angles are float32.
  """
  half = x.shape[-1] // 2
  rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None, None].astype(jnp.float32) * rates.reshape(1, 1, 1, half)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
