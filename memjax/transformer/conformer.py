"""The Conformer encoder: attention and a convolution between two halves of a feed-forward.

Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", 2020, arXiv
2005.08100.

B batch, T frames, D width, K taps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Context, Memory, Stateless, bounded, checks, clean, param, segments
from memjax.core.layers import LayerNorm, Linear, dropout
from memjax.core.segmented import SPAN
from memjax.transformer.attention import Attention
from memjax.transformer.feed_forward import FeedForward
from memjax.transformer.stack import Stack

_LARGEST = 1e12  # of what enters a gate or a norm: its square stays finite


class Convolution(nnx.Module):
  """`y_t = silu(norm(sum_j k_j h_{t+j} + b)) W2 + b2`, a convolution of each feature alone.

  h = a sigmoid(g) with [a, g] = x W1 + b1. j runs over K taps, as many before as after the frame;
  frames that are not valid do not count, and neither do those of another sequence (`reset`).

  Args:
    dim: width D.
    kernel: taps K, odd.
  """

  def __init__(self, dim: int, *, kernel: int = 31, param_dtype=jnp.float32, rngs: nnx.Rngs):
    checks.positive(dim=dim, kernel=kernel)
    if kernel % 2 == 0:
      raise ValueError(f"kernel={kernel} is even; a frame stands amid its taps: use {kernel + 1}")
    self.dim, self.kernel = dim, kernel
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.up = Linear(dim, 2 * dim, bias=True, axes=("embed", "mlp"), **make)
    init = nnx.initializers.normal(kernel**-0.5)
    self.taps = param(rngs, init, (kernel, dim), axes=("window", "mlp"), dtype=param_dtype)
    self.bias = param(rngs, nnx.initializers.zeros, (dim,), axes=("mlp",), dtype=param_dtype)
    self.norm = LayerNorm(dim, **make)
    self.down = Linear(dim, dim, bias=True, axes=("mlp", "embed"), **make)

  def __call__(self, x: jax.Array, *, reset=None, valid=None) -> jax.Array:
    """`[B, T, D] -> [B, T, D]`; flags `[B, T]`."""
    value, gate = jnp.split(bounded(self.up(clean(x, valid)), _LARGEST), 2, axis=-1)
    h = value * jax.nn.sigmoid(gate)
    sequence = None if reset is None else segments(reset, (x.shape[0], x.shape[1]))
    if valid is None:
      return self._after(self._around(h, sequence))
    # Valid frames side by side, zeros behind them, and back.
    order = jnp.argsort(~valid, axis=1, stable=True)
    sequence = None if sequence is None else jnp.take_along_axis(sequence, order, axis=1)
    h = jnp.take_along_axis(clean(h, valid), order[:, :, None], axis=1)
    place = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    h = jnp.take_along_axis(self._around(h, sequence), place[:, :, None], axis=1)
    return self._after(h)

  def _around(self, h, sequence):
    """The sum over taps, `[B, T, D]`; those of another number in sequence `[B, T]` are left out."""
    length, reach = h.shape[1], self.kernel // 2
    ring = jnp.pad(h, ((0, 0), (reach, reach), (0, 0)))
    beside = None if sequence is None else jnp.pad(sequence, ((0, 0), (reach, reach)))
    total = jnp.broadcast_to(self.bias[...].astype(h.dtype)[None, None], h.shape)
    for tap, weight in enumerate(self.taps[...].astype(h.dtype)):
      part = ring[:, tap : tap + length]
      if beside is not None and sequence is not None:
        part = jnp.where((beside[:, tap : tap + length] == sequence)[:, :, None], part, 0)
      total = total + part * weight[None, None]
    return total

  def _after(self, h):
    return self.down(jax.nn.silu(self.norm(h)))


class _Block(Memory):
  """Half a feed-forward, attention, convolution, half a feed-forward, all pre-norm; a norm."""

  residual = causal = False

  def __init__(
    self, dim: int, *, heads: int, hidden: int, kernel: int, dropout: float, param_dtype,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    self.dropout, make = dropout, {"param_dtype": param_dtype, "rngs": rngs}
    half = functools.partial(FeedForward, dim, hidden=hidden, activation="silu", bias=True, **make)
    self.first, self.last = half(), half()
    self.attention = Attention(dim, heads=heads, span=SPAN, bias=True, **make)
    self.convolution = Convolution(dim, kernel=kernel, **make)
    self.norms = nnx.List([LayerNorm(dim, **make) for _ in range(5)])

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    flags, key = {"reset": reset, "valid": valid}, None if context is None else context.key
    within = lambda memory: lambda h: memory(h, Stateless(), context=context, **flags)[0]  # noqa: E731
    parts = (
      (within(self.first), 0.5),
      (within(self.attention), 1.0),
      (lambda h: self.convolution(h, **flags), 1.0),
      (within(self.last), 0.5),
    )
    for index, (part, share) in enumerate(parts):
      fresh = None if key is None else jax.random.fold_in(key, index)
      x = x + share * dropout(part(self.norms[index](x)), self.dropout, fresh)
    return self.norms[-1](x), state


class Conformer(Memory):
  """`blocks` blocks in which every frame sees all frames of its sequence.

  A block is, one after another, with pre-norm residuals: half of a feed-forward (added by half),
  self-attention, `Convolution`, the other half; then a layer norm. A sequence stands in one call,
  packed behind others (`reset`) or padded (`valid`). Stateless.

  Differences from the paper: rotary positions for relative ones, a layer norm for the convolution's
  batch norm (which mixes rows); no subsampling of frames before it.

  Args:
    dim: width D.
    blocks, heads, hidden, kernel: as the base model of end-to-end recognisers has them; hidden is
      the width of both feed-forwards, 4 * dim when None.
    dropout: rate on each residual branch; needs `context.key`.
    remat: what the blocks keep for back-propagation: see `Stack`.
  """

  residual = causal = False

  def __init__(
    self, dim: int, *, blocks: int = 12, heads: int = 4, hidden: int | None = None,
    kernel: int = 31, dropout: float = 0.0, remat: str | None = None, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    hidden = 4 * dim if hidden is None else hidden
    checks.positive(dim=dim, blocks=blocks, hidden=hidden)
    checks.fraction(dropout=dropout)
    self.dim = dim
    block = functools.partial(
      _Block, heads=heads, hidden=hidden, kernel=kernel, dropout=dropout, param_dtype=param_dtype
    )
    self.blocks = Stack(
      dim, pattern=(block,), repeats=blocks, final_norm=False, remat=remat, rngs=rngs
    )

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    context = Context() if context is None else context
    context = dataclasses.replace(
      context, tokens={**context.tokens, SPAN: jnp.ones(x.shape[:2], jnp.int32)}
    )
    inner = self.blocks.init_state(x.shape[0])
    y, _ = self.blocks(x, inner, reset=reset, valid=valid, context=context)
    return y, state
