"""Attention between tokens and slots, in both directions, and the feed-forward after it.

B batch, T tokens or slots that read, S that are read, H heads of width K, D model width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core.layers import Linear


def linear(dim: int, out: int, axes, dtype, rngs: nnx.Rngs, bias: bool = False) -> Linear:
  """A `Linear` that starts Xavier-uniform."""
  init = nnx.initializers.xavier_uniform()
  return Linear(dim, out, bias=bias, init=init, axes=axes, param_dtype=dtype, rngs=rngs)


class SwiGLU(nnx.Module):
  """`y = (silu(x Wg) * (x W1)) W2` (arXiv 2002.05202)."""

  def __init__(self, dim: int, hidden: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
    self.gate = linear(dim, hidden, ("embed", "mlp"), param_dtype, rngs)
    self.up = linear(dim, hidden, ("embed", "mlp"), param_dtype, rngs)
    self.down = linear(hidden, dim, ("mlp", "embed"), param_dtype, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Heads(nnx.Module):
  """Projections of an attention: queries, keys, values, and of what the heads bring.

  Args:
    dim, heads: D and H.   bias: on the last projection.
  """

  def __init__(
    self, dim: int, heads: int, *, bias: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs
  ):
    self.heads = heads
    inner, outer = ("embed", "heads"), ("heads", "embed")
    self.query = linear(dim, dim, inner, param_dtype, rngs)
    self.key = linear(dim, dim, inner, param_dtype, rngs)
    self.value = linear(dim, dim, inner, param_dtype, rngs)
    self.out = linear(dim, dim, outer, param_dtype, rngs, bias=bias)

  def split(self, layer: Linear, x: jax.Array) -> jax.Array:
    """`[B, T, D] -> [B, T, H, K]`."""
    return layer(x).reshape(*x.shape[:-1], self.heads, -1)

  def mix(self, scores, values, mask=None) -> tuple[jax.Array, jax.Array]:
    """Scores `[B, H, T, S]` float32, values `[B, S, H, K]`, mask `[B or 1, T, S]` -> outputs
    `[B, T, D]`, weights."""
    if mask is not None:
      scores = jnp.where(mask[:, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1)
    y = jnp.einsum("bhts,bshk->bthk", weights.astype(values.dtype), values)
    return self.out(y.reshape(*y.shape[:2], -1)), weights

  def across(self, x, others, bias, mask=None) -> tuple[jax.Array, jax.Array]:
    """As `mix`, of `x [B, T, D]` to `others [B, S, D]` with `bias [B, T, S, H]` on the scores."""
    q, k = self.split(self.query, x), self.split(self.key, others)
    scores = products(q, k) * q.shape[-1] ** -0.5 + jnp.moveaxis(bias, 3, 1)
    return self.mix(scores, self.split(self.value, others), mask)


def products(q: jax.Array, k: jax.Array) -> jax.Array:
  """`[B, T, H, K], [B, S, H, K] -> [B, H, T, S]` float32."""
  return jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)


def sinusoid(at: jax.Array, dim: int) -> jax.Array:
  """`[..., D]` float32: sines, then cosines, of places `at` at D / 2 rates from 1 to 1e-4."""
  rates = 10_000.0 ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  angles = at[..., None].astype(jnp.float32) * rates.reshape((1,) * at.ndim + (-1,))
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
