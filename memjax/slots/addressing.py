"""Addresses over slots, for all systems with addressed slots: content, shift, sharpening.

B batch, H heads, N slots, W slot width, S shift range. A memory is held as columns, `[B, W, N]`:
the slots, not the few numbers in each, fill the vector lanes. Everything is float32; addresses are
non-negative and sum to 1.
"""

import jax
import jax.numpy as jnp


def norms(x: jax.Array, axis: int) -> jax.Array:
  """Euclidean norms over an axis, with a finite gradient at zero: `sqrt(sum x^2 + 1e-12)`."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axis) + 1e-12)


def cosine(keys: jax.Array, memory: jax.Array, eps: float = 1e-8) -> jax.Array:
  """`k . M(i) / (|k| |M(i)| + eps)`: keys `[B, H, W]`, memory `[B, W, N]` -> `[B, H, N]`."""
  dots = jnp.einsum("bhw,bwn->bhn", keys, memory)
  return dots / (norms(keys, 2)[:, :, None] * norms(memory, 1)[:, None, :] + eps)


def content(keys: jax.Array, strength: jax.Array, memory: jax.Array, eps: float = 1e-8):
  """`softmax_i(strength * cos(k, M(i)))`, `[B, H, N]`.

  Args:
    keys: `[B, H, W]`.   strength: `[B, H]`.   memory: `[B, W, N]`.
  """
  return jax.nn.softmax(strength[:, :, None] * cosine(keys, memory, eps), axis=-1)


def shift(weights: jax.Array, kernel: jax.Array) -> jax.Array:
  """Circular convolution `w'(i) = sum_o kernel(o) w(i - o)`: offset +1 moves slot j to slot j + 1.

  Args:
    weights: `[B, H, N]`.   kernel: `[B, H, 2S + 1]`, offsets -S to S; 2S + 1 <= N.
  """
  slots, reach = weights.shape[-1], kernel.shape[-1] // 2
  if reach == 0:
    return weights * kernel
  ring = jnp.concatenate([weights[..., slots - reach :], weights, weights[..., :reach]], axis=-1)
  moved = jnp.zeros((), weights.dtype)
  for j in range(2 * reach + 1):
    start = 2 * reach - j
    moved = moved + ring[..., start : start + slots] * kernel[..., j : j + 1]
  return moved


def sharpen(weights: jax.Array, gamma: jax.Array, eps: float = 1e-16) -> jax.Array:
  """`w^gamma / sum w^gamma`: weights `[B, H, N]`, gamma `[B, H]`.

  Computed in logarithms: powers of small weights would all underflow, and give 0 / 0.
  """
  return jax.nn.softmax(gamma[:, :, None] * jnp.log(weights + eps), axis=-1)


def read(weights: jax.Array, memory: jax.Array) -> jax.Array:
  """`r_h = sum_i w_h(i) M(i)`: weights `[B, H, N]`, memory `[B, W, N]` -> `[B, H, W]`."""
  return jnp.einsum("bhn,bwn->bhw", weights, memory)


def erase_add(memory: jax.Array, weights: jax.Array, erase: jax.Array, add: jax.Array) -> jax.Array:
  """`M(i) * prod_h (1 - w_h(i) e_h) + sum_h w_h(i) a_h`: all the erasures, then all the additions.

  Args:
    memory: `[B, W, N]`.   weights: `[B, H, N]`.   erase, add: `[B, H, W]`, erase in [0, 1].
  """
  for head in range(weights.shape[1]):
    memory = memory * (1 - weights[:, head, None, :] * erase[:, head, :, None])
  for head in range(weights.shape[1]):
    memory = memory + weights[:, head, None, :] * add[:, head, :, None]
  return memory
