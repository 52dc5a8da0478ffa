"""One step of PMI: how tokens write two memories, and what they read from them (see `pmi`).

B batch, T tokens, D width, H heads of keys of width K and values of width V = D / H, N slots, C
layers of the long-term memory.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Fixed, as_state, bounded, channel, leaf, param
from memjax.core.layers import LayerNorm, Linear, uniform
from memjax.core.usage import mean, measure_slots
from memjax.slots import gates
from memjax.slots.slot_attention import LARGEST, attend, split_heads

MLP_STEPS = 4  # how often one linear layer is applied, ReLU after each


@as_state
class PMIMemories:
  """What a step hands to the next.

  Attributes:
    working: `[B, N, D]` float32.
    long_term: `[B, C, N, D]` float32.
    filled: `[B] int32`, tokens in the open segment; 0 at a border; -1: the row was misused, and its
      outputs are NaN until a reset.
  """

  working: jax.Array = leaf("slots", "embed")
  long_term: jax.Array = leaf("memory", "slots", "embed")
  filled: jax.Array = leaf()


def _contracted(long_term, z):
  """`O[c, n, f] = (sum_d L[c, n, d]) z[n, f]`."""
  return jnp.sum(long_term, axis=-1, keepdims=True) * z[:, None]


def _outer(long_term, z):
  """`O[c, n, f] = (sum_d L[c, n, d] z[n, d]) z[n, f]`."""
  return jnp.sum(long_term * z[:, None], axis=-1, keepdims=True) * z[:, None]


LTM_UPDATES: dict[str, Callable] = {"contracted": _contracted, "outer": _outer}


class PMIStep(nnx.Module):
  """The weights and equations of `PMI`, which has its arguments."""

  def __init__(
    self, dim: int, *, slots: int, heads: int, key_size: int, long_term: int, top_k: int | None,
    ltm_update: str, param_dtype, rngs: nnx.Rngs,
  ):  # fmt: skip
    self.heads, self.slots, self.top_k, self.ltm_update = heads, slots, top_k, ltm_update
    made, small = uniform(dim**-0.5), uniform((2 * dim) ** -0.5)
    make = {"param_dtype": param_dtype, "rngs": rngs}
    draws = {"init": made, "bias_init": made, **make}
    linear = functools.partial(Linear, dim, bias=True, axes=("embed", "memory"), **draws)
    self.inputs = linear(dim)
    self.query, self.key, self.value = (linear(n) for n in (heads * key_size,) * 2 + (dim,))
    self.mlp = linear(dim)
    self.norm, self.mlp_norm, self.ltm_norm = (LayerNorm(dim, **make) for _ in range(3))
    self.pooled_gates = gates.PooledGates(dim, 2 * dim, **draws)
    cell = functools.partial(param, rngs, dtype=param_dtype)
    self.slot_gates = cell(small, (slots, dim, 2 * dim), axes=("slots", "embed", "memory"))
    self.slot_bias = cell(small, (slots, 2 * dim), axes=("slots", "memory"))
    self.input_bias = cell(nnx.initializers.zeros, (), axes=())
    self.forget_bias = cell(nnx.initializers.ones, (), axes=())
    shape, names = (long_term, slots, dim), ("memory", "slots", "embed")
    self.first = cell(nnx.initializers.uniform(1.0), shape, axes=names, kind=Fixed)

  def init(self, batch: int) -> PMIMemories:
    """The memories before the first step."""
    first = self.first[...].astype(jnp.float32)
    long_term = jnp.broadcast_to(first[None], (batch, *first.shape))
    working = gates.identity(self.slots, first.shape[-1], batch)
    return PMIMemories(working, long_term, jnp.zeros(batch, jnp.int32))

  def perceive(self, x: jax.Array) -> jax.Array:
    """X', `[B, T, D]`, dtype of x."""
    return bounded(self.inputs(x), LARGEST)

  def told(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys `[B, S, H, K]` and values `[B, S, H, V]` of rows `[B, S, D]`, float32."""
    return split_heads(self.key(rows), self.heads), split_heads(self.value(rows), self.heads)

  def look(self, rows, told, mask=None, top_k: int | None = None):
    """What rows `[B, T, D]` find by attention, `[B, T, D]` float32, and weights `[B, T, H, S]`."""
    query, (keys, values) = split_heads(self.query(rows), self.heads), told
    found, weights = attend(query, keys, values, mask, scale=1.0, top_k=top_k)
    return found.reshape(*found.shape[:2], -1), weights

  def write(self, tokens, memories: PMIMemories, valid=None) -> PMIMemories:
    """The memories after `tokens [B, T, D]`, as `perceive` gives them; `filled` is left alone."""
    working, mask = memories.working, None if valid is None else valid[:, None, :]
    found, _ = self.look(working, self.told(tokens), mask, self.top_k)
    z = h = self.norm(working + found)
    for _ in range(MLP_STEPS):
      h = jax.nn.relu(self.mlp(h))
    z = self.mlp_norm(z + h)
    merged = LTM_UPDATES[self.ltm_update](memories.long_term, z)
    long_term = self.ltm_norm(memories.long_term + merged)
    both = self.pooled_gates(tokens, valid)[:, None] + self._slot_gates(working)
    write, keep = jnp.split(both, 2, axis=-1)
    write, keep = write + self.input_bias[...], keep + self.forget_bias[...]
    if channel.measuring():
      rows = None if valid is None else jnp.any(valid, axis=1)
      mean("input_gate", jax.nn.sigmoid(write), rows)  # `gated` traces them
      mean("forget_gate", jax.nn.sigmoid(keep), rows)
    working = gates.gated(working, z, write, keep, forget_bias=0.0)
    return PMIMemories(working, long_term, memories.filled)

  def _slot_gates(self, working):
    kernel, bias = (a[...].astype(jnp.float32) for a in (self.slot_gates, self.slot_bias))
    return jnp.einsum("bnd,nde->bne", jnp.tanh(working), kernel) + bias[None]

  def read(self, tokens, memories: PMIMemories, valid=None) -> tuple[jax.Array, jax.Array]:
    """What tokens find in the working and in the long-term memory, `[B, T, D]` float32 each."""
    working, weights = self.look(tokens, self.told(memories.working))
    measure_slots(read=weights, valid=valid)
    rows = jnp.mean(memories.long_term, axis=1)
    return working, self.look(tokens, self.told(rows), top_k=self.top_k)[0]
