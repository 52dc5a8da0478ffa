"""Addresses over slots, for all systems with addressed slots: content, shift, sharpening.

B batch, H heads, N slots, W slot width, S shift range. A memory is held as columns, `[B, W, N]`:
the slots, not the few numbers in each, fill the vector lanes. Everything is float32; addresses are
non-negative and sum to 1.
"""

import functools
import operator

import jax
import jax.numpy as jnp

EPS = 1e-8  # beside the product of two lengths
FLOOR = 1e-12  # beside a sum of squares
TINY = 1e-16  # beside a weight under a logarithm


def norms(x: jax.Array, axis: int, floor: float = FLOOR) -> jax.Array:
  """Euclidean norms over an axis, with a finite gradient at zero: `sqrt(sum x^2 + floor)`."""
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axis) + floor)


def cosine(keys: jax.Array, memory: jax.Array, eps: float = EPS) -> jax.Array:
  """`k . M(i) / (|k| |M(i)| + eps)`: keys `[B, H, W]`, memory `[B, W, N]` -> `[B, H, N]`."""
  dots = jnp.einsum("bhw,bwn->bhn", keys, memory)
  return dots / (norms(keys, 2)[:, :, None] * norms(memory, 1)[:, None, :] + eps)


def content(
  keys: jax.Array, strength: jax.Array, memory: jax.Array, eps: float = EPS, floor: float = FLOOR
) -> jax.Array:
  """`softmax_i(strength * cos(k, M(i)))`, `[B, H, N]`.

  Args:
    keys: `[B, H, W]`.   strength: `[B, H]`.   memory: `[B, W, N]`.
    eps: beside the product of two lengths.   floor: beside the sum of squares in each.
  """
  return _content(keys, strength, memory, eps, floor)


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


def sharpen(weights: jax.Array, gamma: jax.Array, eps: float = TINY) -> jax.Array:
  """`w^gamma / sum w^gamma`: weights `[B, H, N]`, gamma `[B, H]`.

  Computed in logarithms: powers of small weights would all underflow, and give 0 / 0.
  """
  return jax.nn.softmax(gamma[:, :, None] * jnp.log(weights + eps), axis=-1)


def read(weights: jax.Array, memory: jax.Array) -> jax.Array:
  """`r_h = sum_i w_h(i) M(i)`: weights `[B, H, N]`, memory `[B, W, N]` -> `[B, H, W]`."""
  return _read(weights, memory)


def address(
  keys: jax.Array, strength: jax.Array, gate: jax.Array, kernel: jax.Array, gamma: jax.Array,
  memory: jax.Array, old: jax.Array,
) -> jax.Array:  # fmt: skip
  """`sharpen(shift(gate content + (1 - gate) old, kernel), gamma)`, `[B, H, N]`.

  Args:
    keys: `[B, H, W]`.   strength, gate, gamma: `[B, H]`.   kernel: `[B, H, 2S + 1]`.
    memory: `[B, W, N]`.   old: the last addresses, `[B, H, N]`.
  """
  return _address(keys, strength, gate, kernel, gamma, memory, old)


def erase_add(memory: jax.Array, weights: jax.Array, erase: jax.Array, add: jax.Array) -> jax.Array:
  """`M(i) * prod_h (1 - w_h(i) e_h) + sum_h w_h(i) a_h`: all the erasures, then all the additions.

  Args:
    memory: `[B, W, N]`.   weights: `[B, H, N]`.   erase, add: `[B, H, W]`, erase in [0, 1].
  """
  return _erase_add(memory, weights, erase, add)


# Gradients, written out for loops over tokens: few passes over few stored arrays, outer products
# that fuse with the sums around them. Reverse mode only. `dx` is the cotangent of `x`.


def _total(x: jax.Array) -> jax.Array:
  return jnp.sum(x, axis=-1)


def _along_width(vectors: jax.Array, memory: jax.Array) -> jax.Array:
  """`v_h . M(i)`: `[B, H, W]`, `[B, W, N]` -> `[B, H, N]`."""
  return jnp.einsum("bhw,bwn->bhn", vectors, memory)


def _along_slots(weights: jax.Array, memory: jax.Array) -> jax.Array:
  """`sum_i w_h(i) M(i)`: `[B, H, N]`, `[B, W, N]` -> `[B, H, W]`."""
  return jnp.einsum("bhn,bwn->bhw", weights, memory)


def _outer(weights: jax.Array, vectors: jax.Array) -> jax.Array:
  """`sum_h w_h(i) v_h`: `[B, H, N]`, `[B, H, W]` -> `[B, W, N]`; heads are few: no product."""
  heads = range(weights.shape[1])
  return sum((weights[:, h, None, :] * vectors[:, h, :, None] for h in heads), jnp.zeros(()))


def _softmax_backward(out: jax.Array, dout: jax.Array) -> jax.Array:
  return out * (dout - _total(out * dout)[..., None])


_read = jax.custom_vjp(_along_slots)


def _read_backward(saved, dreads):
  weights, memory = saved
  return _along_width(dreads, memory), _outer(weights, dreads)


_read.defvjp(lambda weights, memory: (_read(weights, memory), (weights, memory)), _read_backward)


@jax.custom_vjp
def _address(*args):
  return _address_forward(*args)[0]


def _address_forward(keys, strength, gate, kernel, gamma, memory, old):
  found, similar = _content_forward(keys, strength, memory, EPS, FLOOR)
  moved = shift(gate[:, :, None] * found + (1 - gate[:, :, None]) * old, kernel)
  weights = sharpen(moved, gamma)
  return weights, (similar, (gate, kernel, old, found), (gamma, moved, weights))


def _address_backward(saved, dweights):
  similar, placed, sharpened = saved
  dmoved, dgamma = _sharpen_backward(sharpened, dweights)
  dfound, dgate, dkernel, dold = _place_backward(placed, dmoved)
  dkeys, dstrength, dmemory = _content_backward(EPS, FLOOR, similar, dfound)
  return dkeys, dstrength, dgate, dkernel, dgamma, dmemory, dold


def _sharpen_backward(saved, dweights):
  gamma, moved, weights = saved
  moved, dlogits = moved + TINY, _softmax_backward(weights, dweights)
  return dlogits * gamma[:, :, None] / moved, _total(dlogits * jnp.log(moved))


def _place_backward(saved, dmoved):
  gate, kernel, old, found = saved
  gate = gate[:, :, None]
  dmixed, dkernel = _shift_backward(gate * found + (1 - gate) * old, kernel, dmoved)
  return gate * dmixed, _total(dmixed * (found - old)), dkernel, (1 - gate) * dmixed


def _shift_backward(weights, kernel, dmoved):
  slots, reach = weights.shape[-1], kernel.shape[-1] // 2
  ring = jnp.concatenate([weights[..., slots - reach :], weights, weights[..., :reach]], axis=-1)
  starts = range(2 * reach, -1, -1)
  dkernel = [_total(dmoved * ring[..., i : i + slots]) for i in starts]
  return shift(dmoved, kernel[..., ::-1]), jnp.stack(dkernel, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _content(keys, strength, memory, eps, floor):
  return _content_forward(keys, strength, memory, eps, floor)[0]


def _content_forward(keys, strength, memory, eps, floor):
  lengths = norms(keys, 2, floor), norms(memory, 1, floor)
  cos = _along_width(keys, memory) / (lengths[0][:, :, None] * lengths[1][:, None, :] + eps)
  found = jax.nn.softmax(strength[:, :, None] * cos, axis=-1)
  return found, (keys, strength, memory, lengths, cos, found)


def _content_backward(eps, floor, saved, dfound):
  keys, strength, memory, (key, slot), cos, found = saved
  dlogits = _softmax_backward(found, dfound)
  dstrength, dcos = _total(dlogits * cos), dlogits * strength[:, :, None]
  dproduct = dcos / (key[:, :, None] * slot[:, None, :] + eps)
  dscale = -dproduct * cos  # of the product of both lengths
  dkey, dslot = _total(dscale * slot[:, None, :]), jnp.sum(dscale * key[:, :, None], axis=1)
  dkeys = _along_slots(dproduct, memory) + keys * (dkey / key)[:, :, None]
  return dkeys, dstrength, _outer(dproduct, keys) + memory * (dslot / slot)[:, None, :]


_content.defvjp(_content_forward, _content_backward)
_address.defvjp(_address_forward, _address_backward)


@jax.custom_vjp
def _erase_add(memory, weights, erase, add):
  return _product(_kept(weights, erase), memory) + _outer(weights, add)


def _kept(weights, erase):
  """`1 - w_h(i) e_h`, `[B, W, N]` a head."""
  heads = range(weights.shape[1])
  return [1 - weights[:, h, None, :] * erase[:, h, :, None] for h in heads]


def _product(factors, start):
  return functools.reduce(operator.mul, factors, start)


def _erase_add_backward(saved, dnew):
  memory, weights, erase, add = saved
  kept, dkept, dweights, derase = _kept(weights, erase), dnew * memory, [], []
  for h in range(len(kept)):
    dlost = -_product(kept[:h] + kept[h + 1 :], dkept)
    dweights.append(_along_width(erase[:, h : h + 1], dlost))
    derase.append(_along_slots(weights[:, h : h + 1], dlost))
  dweights = jnp.concatenate(dweights, axis=1) + _along_width(add, dnew)
  derase, dadd = jnp.concatenate(derase, axis=1), _along_slots(weights, dnew)
  return _product(kept, dnew), dweights, derase, dadd


_erase_add.defvjp(lambda *args: (_erase_add(*args), args), _erase_add_backward)


def keep_largest(weights: jax.Array, count: int) -> jax.Array:
  """The `count` largest weights along the last axis, zeros elsewhere; what is left is not made to
  sum to 1."""
  _, index = jax.lax.top_k(jax.lax.stop_gradient(weights), count)
  place = jnp.arange(weights.shape[-1]).reshape((1,) * (weights.ndim - 1) + (-1, 1))
  kept = jnp.any(index[..., None, :] == place, axis=-1)  # no gather, and no scatter behind it
  return jnp.where(kept, weights, 0)
