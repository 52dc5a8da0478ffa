"""The gated update of a few slots that are all rewritten at once: Relational Memory Core, LM2, PMI;
and that of a GRU.

B batch, T tokens, N slots, W slot width. Everything is float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks, param
from memjax.core.layers import Linear
from memjax.core.usage import trace_step


def identity(slots: int, width: int, batch: int) -> jax.Array:
  """First slots `[B, N, W]` that differ: the identity, padded with zeros or cut to W columns.

  Slots that start equal stay equal under an update that treats all alike. The rows of an identity
  cut to W < N are zero, and so equal, from row W on.
  """
  return jnp.broadcast_to(jnp.eye(slots, width, dtype=jnp.float32), (batch, slots, width))


def gated(memory, candidate, write, keep, *, input_bias=0.0, forget_bias=1.0) -> jax.Array:
  """`M' = i tanh(C) + f M` with `i = sigmoid(write + input_bias)`, `f = sigmoid(keep +
  forget_bias)`.

  Args:
    memory, candidate: M and C, `[B, N, W]`.
    write, keep: logits of the gates, of a shape that broadcasts to `[B, N, W]`: a gate a number, or
      `[B, N, 1]`, a gate a slot. Traced, in a loop over time, as `input_gate` and `forget_gate`.
    input_bias, forget_bias: numbers, or scalar arrays if they are learned.
  """
  i, f = jax.nn.sigmoid(write + input_bias), jax.nn.sigmoid(keep + forget_bias)
  trace_step(input_gate=i, forget_gate=f)
  return i * jnp.tanh(candidate) + f * memory


def gru(new, old, h) -> jax.Array:
  """A GRU's next state `(1 - z) tanh(n + r n') + z h`.

      r = sigmoid(a + a'),  z = sigmoid(b + b')

  Args:
    new, old: `[..., 3 W]`, a, b, n made of the input, and a', b', n' made of h.
    h: `[..., W]`.
  """
  new, old = jnp.split(new, 3, axis=-1), jnp.split(old, 3, axis=-1)
  r, z = jax.nn.sigmoid(new[0] + old[0]), jax.nn.sigmoid(new[1] + old[1])
  return (1 - z) * jnp.tanh(new[2] + r * old[2]) + z * h


class PooledGates(nnx.Module):
  """What all tokens together say to the gates: `mean_t relu(w * x_t) V + b`, `[B, T, D] -> [B, E]`.

  It sees tokens that a causal memory must not see yet: LM2's released code and PMI have it.

  Args:
    dim, out: D and E.   init, bias_init: of V and b; w starts normal with deviation 1.
  """

  def __init__(
    self, dim: int, out: int, *, init, bias_init=nnx.initializers.zeros, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, out=out)
    normal = nnx.initializers.normal(1.0)
    self.scale = param(rngs, normal, (dim,), axes=("embed",), dtype=param_dtype)
    make = {"init": init, "bias_init": bias_init, "param_dtype": param_dtype, "rngs": rngs}
    self.linear = Linear(dim, out, bias=True, axes=("embed", "memory"), **make)

  def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Means are over the `valid [B, T]` tokens; without any they are 0."""
    x = jax.nn.relu(self.scale[...].astype(jnp.float32)[None, None] * x.astype(jnp.float32))
    if valid is None:
      mean = jnp.mean(x, axis=1)
    else:
      count = jnp.maximum(jnp.sum(valid, axis=1, dtype=jnp.float32), 1)
      mean = jnp.sum(jnp.where(valid[:, :, None], x, 0), axis=1) / count[:, None]
    return self.linear(mean)
