"""Rounding of updated rows to the dtype of their table."""

import jax
import jax.numpy as jnp


def round_to(dtype, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
  """`x` float32 in `dtype`: to nearest, or with a key (bfloat16 only) up or down at random, so that
  the mean is `x` and steps far below a table's resolution add up."""
  if key is None:
    return x.astype(dtype)
  if dtype != jnp.bfloat16:
    raise ValueError(f"stochastic rounding is to bfloat16; got {jnp.dtype(dtype)}")
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)
