"""Products inside a loop over tokens whose weights get their gradients after the loop.

A loop's own gradient adds `x_t^T dy_t`, as large as the weights, at every step. Here a step hands
its two factors out, as the cotangents of zeros scanned in, and one product after the loop sums:

    factors = late.factors(linear, batch, length)   # before the loop, which cuts it along with x
    y_t = late.product(linear, x_t, factors_t)      # in the loop: linear(x_t)

One `factors` serves one product a step; a step that is not valid adds nothing. Float32; reverse
mode only.
"""

import functools

import jax
import jax.numpy as jnp

from memjax.core.layers import Linear


def _parameters(layer: Linear):
  return layer.kernel[...], None if layer.bias is None else layer.bias[...]


def factors(layer: Linear, batch: int, length: int) -> tuple[jax.Array, jax.Array]:
  """Zeros `[B, T, D]`, `[B, T, E]` whose cotangents become the gradients of `layer`'s arrays."""
  return _factors(*_parameters(layer), batch, length, layer.sequence_sharding is not None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _factors(kernel, bias, batch, length, cut):
  return tuple(jnp.zeros((batch, length, size), jnp.float32) for size in kernel.shape)


def _factors_forward(kernel, bias, batch, length, cut):
  return _factors(kernel, bias, batch, length, cut), (kernel, bias)


def _factors_backward(batch, length, cut, parameters, cotangents):
  kernel, bias = parameters
  if cut:  # rows of an axis that is cut and not the first would be gathered
    x, dy = cotangents
    dkernel, dbias = jnp.einsum("btd,bte->de", x, dy), dy.sum((0, 1))
  else:  # time first, as the loop left them: nothing is copied
    x, dy = (jnp.swapaxes(a, 0, 1).reshape(batch * length, -1) for a in cotangents)
    dkernel, dbias = x.T @ dy, dy.sum(0)
  return dkernel.astype(kernel.dtype), None if bias is None else dbias.astype(bias.dtype)


_factors.defvjp(_factors_forward, _factors_backward)


def product(layer: Linear, x: jax.Array, factors: tuple[jax.Array, jax.Array]) -> jax.Array:
  """`layer(x)`, `[B, D] -> [B, E]` float32, with one step's factors."""
  kernel, bias = jax.tree.map(jax.lax.stop_gradient, _parameters(layer))
  return _product(kernel, bias, x, factors)


@jax.custom_vjp
def _product(kernel, bias, x, factors):
  y = x @ kernel.astype(x.dtype)
  return y if bias is None else y + bias.astype(x.dtype)[None]


def _product_forward(kernel, bias, x, factors):
  return _product(kernel, bias, x, factors), (kernel, x)


def _product_backward(residuals, dy):
  kernel, x = residuals
  # On a CPU twice as fast as `dy @ kernel.T`, which XLA would make of it without the barrier.
  dx = jax.lax.optimization_barrier(kernel.astype(dy.dtype) @ dy.T).T
  return None, None, dx, (x, dy)


_product.defvjp(_product_forward, _product_backward)
