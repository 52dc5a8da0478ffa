"""Layers that share a PMI's weights and memories: the model of its authors (arXiv
2310.09297; see `pmi`).

B batch, T tokens, g tokens of a segment, D model width, L layers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, channel, checks, clean, segmented
from memjax.core.layers import LayerNorm, dropout
from memjax.slots.pmi import PMI, PMIState


class PMIEncoder(Memory):
  """L transformer layers that share all their weights and hand two memories on: the authors' model.

      a layer:  h = LN(x);  M, L <- written by h;  x <- x + U(h, M, L);  x <- x + FFN(LN(x))

  A segment of g tokens goes through all layers, then the next, which finds the memories as the last
  layer left them: the authors' inputs are one segment each, from `init_state`. It has no final norm
  and no positions, and is not causal.

  Args:
    dim: model width D.
    mixer: factory of a `PMI` with causal=False, called as `mixer(dim, rngs=rngs)`.
    feed_forward: factory of a memory without state, called likewise; the authors' has width 512 for
      D = 256, ReLU and biases.
    layers: L.
    dropout: rate on what each sublayer adds; needs `context.key`. The authors have 0.1.

  State: the `PMIState` of its mixer.
  """

  residual = False
  causal = False

  def __init__(
    self, dim: int, *, mixer: Callable[..., PMI], feed_forward: Callable[..., Memory],
    layers: int = 4, dropout: float = 0.0, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, layers=layers)
    checks.fraction(dropout=dropout)
    self.dim, self.layers, self.dropout = dim, layers, dropout
    self.mixer, self.feed_forward = mixer(dim, rngs=rngs), feed_forward(dim, rngs=rngs)
    if not isinstance(self.mixer, PMI) or self.mixer.causal:
      raise ValueError("mixer made no PMI(causal=False), in which a layer reads what it wrote")
    if jax.tree.leaves(jax.eval_shape(lambda: self.feed_forward.init_state(1))):
      raise ValueError(f"feed_forward made {type(self.feed_forward).__name__}, which has a state")
    self.granularity = self.mixer.granularity
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.norm, self.feed_forward_norm = LayerNorm(dim, **make), LayerNorm(dim, **make)

  def init_state(self, batch: int) -> PMIState:
    return self.mixer.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    if x.shape[1] % self.granularity:
      raise ValueError(
        f"x has T={x.shape[1]} tokens; PMIEncoder takes multiples of segment={self.granularity}: "
        "pad with valid=False"
      )
    context = None if context is None else context.with_tokens({})
    y, memories, _ = segmented.whole(
      self._segment, clean(x, valid), state.memories, segment=self.granularity,
      init=self.mixer.step.init(x.shape[0]), reset=reset, valid=valid, context=context,
      remat=self.mixer.remat,
    )  # fmt: skip
    return y.astype(x.dtype), PMIState(memories, state.open)

  def _segment(self, x, valid, memories, context):
    nothing = self.feed_forward.init_state(x.shape[0])

    def layer(carry, index):
      x, memories = carry
      inner = segmented.fold_key(context, index)
      add = lambda x, y, site: x + self._drop(y, inner, site).astype(x.dtype)  # noqa: E731
      y, memories = self.mixer.together(clean(self.norm(x), valid), valid, memories)
      x = add(x, y, 0)
      y, _ = self.feed_forward(self.feed_forward_norm(x), nothing, valid=valid, context=inner)
      return (add(x, y, 1), memories), None

    return channel.scan(layer, (x, memories), jnp.arange(self.layers))[0]

  def _drop(self, y, context, site: int):
    key = None if context is None or context.key is None else jax.random.fold_in(context.key, site)
    return dropout(y, self.dropout, key)
