"""Which slots to write to: the least used ones, for all systems that keep count of use.

B batch, N slots. The smaller its usage, the freer a slot; of slots that are used alike the first
comes first, on every platform: sorts are stable.
"""

import jax
import jax.numpy as jnp

EPS = 1e-6  # usage of a slot that nobody used, so that gradients can be divided by it


def least_used(usage: jax.Array, count: int) -> jax.Array:
  """The `count` slots of least usage, least first: `[B, N]` -> `[B, count]` int32, no gradient."""
  order = jnp.argsort(jax.lax.stop_gradient(usage), axis=-1, stable=True)
  return order[..., :count].astype(jnp.int32)


def allocate(usage: jax.Array) -> jax.Array:
  """Weights that fill free slots first: `a(i) = (1 - u(i)) prod of u over the slots before i`.

  Slots come in the order of falling `1 - u`, compared in float32: below a usage of about 6e-8 all
  are equally free. Gradients pass through the values, not through the order; reverse mode only.

  Args:
    usage: `[B, N]` float32 in [0, 1]; enters as `EPS + (1 - EPS) usage`.

  Returns:
    `[B, N]`, sums to at most 1: one-hot at a slot of usage 0, zero where all are in use.
  """
  return _allocate(usage)


@jax.custom_vjp
def _allocate(usage):
  return _allocate_forward(usage)[0]


def _allocate_forward(usage):
  usage = EPS + (1 - EPS) * usage
  slots = jax.lax.broadcasted_iota(jnp.int32, usage.shape, usage.ndim - 1)
  _, order, used = jax.lax.sort((usage - 1, slots, usage), num_keys=1, is_stable=True)
  before = jax.lax.cumprod(used, axis=used.ndim - 1)
  before = jnp.concatenate([jnp.ones_like(used[..., :1]), before[..., :-1]], axis=-1)
  return _in_place(order, (1 - used) * before), (order, used, before)


def _in_place(order, values):
  """Values of the slots `order`, put back in the order of slots."""
  return jax.lax.sort((order, values), num_keys=1, is_stable=False)[1]


def _allocate_backward(saved, dweights):
  order, used, before = saved
  d = jnp.take_along_axis(dweights, order, axis=-1)
  after = jax.lax.cumsum(d * (1 - used) * before, axis=d.ndim - 1, reverse=True)
  after = jnp.concatenate([after[..., 1:], jnp.zeros_like(d[..., :1])], axis=-1)
  return (_in_place(order, (1 - EPS) * (after / used - d * before)),)


_allocate.defvjp(_allocate_forward, _allocate_backward)
