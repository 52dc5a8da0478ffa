"""How LM2's slots are rewritten after a segment: three variants of one update (see `lm2`).

B batch, g tokens of a segment, D model width, H heads of width K = D / H, N slots. Each is called
with tokens `e [B, g, D]`, what they read `r [B, g, D]` float32, slots `M [B, N, D]` and
`valid [B, g]` or None, and returns M', `[B, N, D]` float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import bounded, param
from memjax.core.layers import LayerNorm, Linear, uniform
from memjax.core.usage import trace_step
from memjax.slots import gates

_LARGEST = 1e15  # of what tokens bring: products stay finite
_SCORE = 1e4  # of scores: beyond, two roundings of one, as a compiler may make, are far apart
_UNSEEN = -2e38  # a score whose weight is zero


def finite(x: jax.Array) -> jax.Array:
  """Float32, and bounded."""
  return bounded(x.astype(jnp.float32), _LARGEST)


def split(layer: Linear, x: jax.Array, heads: int) -> jax.Array:
  """A projection by heads, `[B, t, D] -> [B, t, H, K]` float32."""
  return finite(layer(x)).reshape(*x.shape[:2], heads, -1)


def weights(q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
  """`softmax(q k^T / sqrt(K))`: `[B, t, H, K], [B, s, H, K]`, mask `[B or 1, t or 1, s]` ->
  `[B, H, t, s]`."""
  q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
  scores = bounded(jnp.einsum("bhtk,bhsk->bhts", q, k) * q.shape[-1] ** -0.5, _SCORE)
  return jax.nn.softmax(scores if mask is None else jnp.where(mask[:, None], scores, _UNSEEN), -1)


def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
  """`[B, H, t, s], [B, s, H, K] -> [B, t, D]`."""
  # Heads before slots: in the other order a CPU multiplies with the slots' axis as rows, at a third
  # of the speed.
  y = jnp.swapaxes(jnp.einsum("bhts,bhsk->bhtk", weights, jnp.swapaxes(v, 1, 2)), 1, 2)
  return y.reshape(*y.shape[:2], -1)


def gate(dim: int, *, bias_init=nnx.initializers.zeros, param_dtype, rngs: nnx.Rngs) -> Linear:
  """Logits of a gate."""
  make = {"bias_init": bias_init, "param_dtype": param_dtype, "rngs": rngs}
  return Linear(dim, dim, bias=True, axes=("memory", "embed"), **make)


class Shared(nnx.Module):
  """u = att(M Wq, e Wk, e Wv), M' = sigmoid(u Wi + bi) tanh(LN(u)) + sigmoid(M Wf + bf) M."""

  def __init__(self, dim: int, heads: int, *, param_dtype, rngs: nnx.Rngs):
    self.heads, make = heads, {"param_dtype": param_dtype, "rngs": rngs}
    inner = functools.partial(Linear, dim, dim, axes=("embed", "memory"), **make)
    self.query, self.key, self.value = inner(), inner(), inner()
    self.norm, self.input_gate = LayerNorm(dim, **make), gate(dim, **make)
    self.forget_gate = gate(dim, bias_init=nnx.initializers.ones, **make)

  def __call__(self, e, r, memory, valid):
    layers = (self.query, memory), (self.key, e), (self.value, e)
    q, k, v = (split(layer, a, self.heads) for layer, a in layers)
    attention = weights(q, k, None if valid is None else valid[:, None, :])
    trace_step(attention=attention)
    u = mix(attention, v)
    write, keep = self.input_gate(u), self.forget_gate(memory)
    return gates.gated(memory, self.norm(u), write, keep, forget_bias=0.0)


class Paper(nnx.Module):
  """M' = sigmoid(e Wi + bi) tanh(r) + sigmoid(r Wf + bf) M, with g = N."""

  def __init__(self, dim: int, heads: int, *, param_dtype, rngs: nnx.Rngs):
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.input_gate = gate(dim, **make)
    self.forget_gate = gate(dim, bias_init=nnx.initializers.ones, **make)

  def __call__(self, e, r, memory, valid):
    write, keep = self.input_gate(finite(e)), self.forget_gate(r)
    return _where(valid, gates.gated(memory, r, write, keep, forget_bias=0.0), memory)


class Code(nnx.Module):
  """c = LN(M + r), c = LN(c + mlp(c)), [i, f] = pooled(e) + tanh(M) Wm + bm,
  M' = sigmoid(i + bi) tanh(c) + sigmoid(f + bf) M, with g = N and numbers bi, bf."""

  def __init__(self, dim: int, heads: int, *, param_dtype, rngs: nnx.Rngs):
    make, width, small = {"param_dtype": param_dtype, "rngs": rngs}, dim**-0.5, (2 * dim) ** -0.5
    self.norm, self.mlp_norm = LayerNorm(dim, **make), LayerNorm(dim, **make)
    make |= {"init": uniform(width), "bias_init": uniform(width)}
    self.mlp = Linear(dim, dim, bias=True, axes=("embed", "memory"), **make)
    self.pooled_gates = gates.PooledGates(dim, 2 * dim, **make)
    make |= {"init": uniform(small), "bias_init": uniform(small)}
    self.memory_gates = Linear(dim, 2 * dim, bias=True, axes=("embed", "memory"), **make)
    zeros, ones = nnx.initializers.zeros, nnx.initializers.ones
    self.input_bias = param(rngs, zeros, (), axes=(), dtype=param_dtype)
    self.forget_bias = param(rngs, ones, (), axes=(), dtype=param_dtype)

  def __call__(self, e, r, memory, valid):
    c = self.norm(memory + r)
    h = jax.nn.relu(self.mlp(jax.nn.relu(self.mlp(c))))
    both = self.pooled_gates(finite(e), valid)[:, None] + self.memory_gates(jnp.tanh(memory))
    write, keep = jnp.split(both, 2, axis=-1)
    biases = {"input_bias": self.input_bias[...], "forget_bias": self.forget_bias[...]}
    return _where(valid, gates.gated(memory, self.mlp_norm(c + h), write, keep, **biases), memory)


def _where(valid, new, old):
  """Slots of tokens that are not valid stay as they were."""
  return new if valid is None else jnp.where(valid[:, :, None], new, old)


UPDATES = {"shared": Shared, "paper": Paper, "code": Code}
