"""A causal convolution over the last few tokens, each channel alone: what many sequence models have
before their mixer ("Zoology", arXiv 2312.04927), and so what the comparison can give to all."""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, as_state, checks, leaf, param, segments


@as_state
class ShortConvState:
  """`past [B, K - 1, D]` float32, the last tokens; `seen [B, K - 1] bool`, which of them count."""

  past: jax.Array = leaf("window", "embed")
  seen: jax.Array = leaf("window")


class ShortConv(Memory):
  """`y_t = sum_j w_j x_(t-j)`, j = 0 .. K - 1, w_j `[D]`; tokens before a reset count as 0.

  Args:
    dim: width D.   width: K, at least 2.

  Raises:
    ValueError (the call): `valid` is given.
  """

  def __init__(self, dim: int, *, width: int = 4, rngs: nnx.Rngs):
    checks.positive(dim=dim, width=width)
    if width < 2:
      raise ValueError(f"width={width} must be at least 2: 1 sees no other token")
    self.dim, self.width = dim, width
    init = nnx.initializers.normal(width**-0.5)
    self.kernel = param(rngs, init, (width, dim), axes=("window", "embed"))

  def init_state(self, batch: int) -> ShortConvState:
    held = self.width - 1
    return ShortConvState(jnp.zeros((batch, held, self.dim)), jnp.zeros((batch, held), bool))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    if valid is not None:
      raise ValueError("valid is not for ShortConv: it knows no padding; put it at the end")
    length, held = x.shape[1], self.width - 1
    part = segments(reset, x.shape[:2])
    before = jnp.where(state.seen, 0, -1)  # what was carried in belongs to segment 0, or to none
    part = jnp.concatenate([before, part], axis=1)
    past = jnp.where(state.seen[:, :, None], state.past, 0).astype(x.dtype)
    tokens, y = jnp.concatenate([past, x], axis=1), jnp.zeros_like(x)
    for j in range(self.width):
      there = slice(held - j, held - j + length)
      same = (part[:, there] == part[:, held:])[:, :, None]
      y = y + jnp.where(same, tokens[:, there], 0) * self.kernel[...][j].astype(x.dtype)[None, None]
    seen = part[:, length:] == part[:, -1:]
    last = jnp.where(seen[:, :, None], tokens[:, length:], 0)
    return y, ShortConvState(last.astype(jnp.float32), seen)
