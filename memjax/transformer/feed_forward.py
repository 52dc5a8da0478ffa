"""The feed-forward layer: a memory without state."""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, bounded, checks, clean
from memjax.core.layers import Linear

ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}

_LARGEST = 1e12  # of what enters an activation: its cube stays finite


class FeedForward(Memory):
  """`y = act(x W1) W2`, or gated `y = (act(x Wg) * (x W1)) W2` (GLU variants, arXiv 2002.05202).
  Stateless.

  Args:
    dim: model width D.
    hidden: inner width; 4 * dim when None.
    activation: "gelu" (tanh form), "relu" or "silu".
    gated: multiply by a second projection, as in SwiGLU.
    bias: biases in all the projections.
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    hidden: int | None = None,
    activation: str = "gelu",
    gated: bool = False,
    bias: bool = False,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    hidden = 4 * dim if hidden is None else hidden
    checks.positive(dim=dim, hidden=hidden)
    checks.one_of("activation", activation, ACTIVATIONS)
    self.dim, self.activation = dim, activation
    make = {"bias": bias, "param_dtype": param_dtype, "rngs": rngs}
    self.up = Linear(dim, hidden, axes=("embed", "mlp"), **make)
    self.gate = Linear(dim, hidden, axes=("embed", "mlp"), **make) if gated else None
    self.down = Linear(hidden, dim, axes=("mlp", "embed"), **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    act = ACTIVATIONS[self.activation]
    h = bounded(self.up(x), _LARGEST)
    h = act(h) if self.gate is None else act(bounded(self.gate(x), _LARGEST)) * h
    return self.down(h), state
