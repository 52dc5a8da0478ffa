"""The few plain layers that every family needs, with logical axes; statistics in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks
from memjax.core.module import param

default_init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def uniform(bound: float):
  """An initialiser: uniform in +-bound."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nnx.Module):
  """`y = x W + b`, `[..., D] -> [..., E]`, in the dtype of x.

  Args:
    dim, out: sizes D and E.   bias: add b.   init, bias_init: initialisers.   axes: logical names
      of W's two axes.
  """

  def __init__(
    self,
    dim: int,
    out: int,
    *,
    bias: bool = False,
    init=default_init,
    bias_init=nnx.initializers.zeros,
    axes: tuple[str, str] = ("embed", "mlp"),
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(dim=dim, out=out)
    self.kernel = param(rngs, init, (dim, out), axes=axes, dtype=param_dtype)
    self.bias = param(rngs, bias_init, (out,), axes=axes[1:], dtype=param_dtype) if bias else None
    self.sequence_sharding = None  # how tokens lie on a mesh; see `core.sharding`

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(x.dtype)
    # As rows: over several axes the gradient of W costs XLA a transposed copy of that of y. But
    # rows of two axes that are cut, or of one that is not the first, would be gathered.
    y = (x.reshape(-1, x.shape[-1]) if self.sequence_sharding is None else x) @ kernel
    if self.bias is not None:
      y = y + self.bias[...].astype(x.dtype).reshape(*[1] * (y.ndim - 1), -1)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def _rms(x32: jax.Array, eps: float) -> jax.Array:
  return x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)


def _last(scale: jax.Array, ndim: int) -> jax.Array:
  return scale.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


class RMSNorm(nnx.Module):
  """`x / sqrt(mean(x^2) + eps) * scale` over the last axis, computed in float32, returned in the
  dtype of x."""

  def __init__(
    self, dim: int, *, eps: float = 1e-6, init=nnx.initializers.ones, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim)
    self.eps = eps
    self.scale = param(rngs, init, (dim,), axes=("embed",), dtype=param_dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = _rms(x.astype(jnp.float32), self.eps)
    return (y * _last(self.scale[...], x.ndim)).astype(x.dtype)


class LayerNorm(nnx.Module):
  """Layer norm with scale and bias over the last axis, computed in float32, returned in the dtype
  of x."""

  def __init__(self, dim: int, *, eps: float = 1e-5, param_dtype=jnp.float32, rngs: nnx.Rngs):
    checks.positive(dim=dim)
    self.eps = eps
    self.scale = param(rngs, nnx.initializers.ones, (dim,), axes=("embed",), dtype=param_dtype)
    self.bias = param(rngs, nnx.initializers.zeros, (dim,), axes=("embed",), dtype=param_dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    y = _rms(x32 - jnp.mean(x32, axis=-1, keepdims=True), self.eps)
    return (y * _last(self.scale[...], x.ndim) + _last(self.bias[...], x.ndim)).astype(x.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate); identity
  without a key."""
  if rate == 0 or key is None:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
