"""A memory that reads at one layer and is added after a later one: a connection across layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from memjax.core import Memory, as_state, channel, checks, clean
from memjax.core.layers import RMSNorm, dropout
from memjax.transformer.stack import Factory, Layer


@as_state
class SkipState:
  """States of the layers by their place, and of the memory."""

  layers: dict[str, Any]
  memory: Any


class Skip(Memory):
  """Layers in a row, and a memory beside them: what it reads before layer `at` is added at the end.

  h_i = x_i for `at` = i, normalised by layer i's own norm, as that layer gets it
  x_{i+1} = x_i + layer_i(norm_i(x_i));  y = x_n + memory(h)

  UltraMem's pair "a:b" (arXiv 2411.12364): the layers are attention and feed-forward of blocks a to
  b, `at` = 1 is the first feed-forward. The memory's reads depend on nothing after layer `at`, so
  the compiler may run them beside the layers. One pattern unit of a `Stack`:
  `Stack(pattern=(partial(Skip, layers=(attention, feed_forward) * 4, memory=ultramem, at=1),))`.

  Args:
    dim: model width D.
    layers: factories, each called as `factory(dim, rngs=rngs)`.
    memory: factory of the memory.
    at: the layer whose input the memory reads.
    norm: factory of the norms, called as `norm(dim, rngs=rngs)`.
    dropout: rate on each residual branch, the memory's too; needs `context.key`.

  State: `SkipState`.
  """

  residual = False
  cuts_time = True

  def __init__(
    self, dim: int, *, layers: Sequence[Factory], memory: Factory, at: int = 0,
    norm: Callable = RMSNorm, dropout: float = 0.0, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim)
    checks.fraction(dropout=dropout)
    if not 0 <= at < len(layers):
      raise ValueError(f"at={at} must be one of the {len(layers)} layers, 0 to {len(layers) - 1}")
    self.dim, self.at, self.dropout = dim, at, dropout
    made = [factory(dim, rngs=rngs) for factory in layers]
    self.layers = nnx.Dict({str(i): Layer(one, dim, norm, rngs) for i, one in enumerate(made)})
    self.memory = memory(dim, rngs=rngs)
    if not self.memory.residual:
      name = type(self.memory).__name__
      raise ValueError(
        f"memory is {name}, which returns the new activation itself; it is to be added"
      )
    self.granularity = math.lcm(*(one.granularity for one in (*made, self.memory)))
    self.causal = all(one.causal for one in (*made, self.memory))

  def init_state(self, batch: int) -> SkipState:
    states = {key: layer.memory.init_state(batch) for key, layer in self.layers.items()}
    return SkipState(states, self.memory.init_state(batch))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x, states = clean(x, valid), {}

    def run(memory, index, x, state, **options):
      inner = None if context is None else context.fold(index)
      return memory(x, state, reset=reset, valid=valid, context=inner, **options)

    read, memory = x, state.memory
    for i, (key, layer) in enumerate(self.layers.items()):
      if i == self.at:
        h = x if layer.norm is None else layer.norm(x)
        read, memory = run(self.memory, len(self.layers), h, memory)
      with channel.scope(key):
        x, states[key] = run(layer, i, x, state.layers[key], rate=self.dropout)
    key = None
    if context is not None and context.key is not None:
      key = jax.random.fold_in(context.key, len(self.layers) + 1)
    return x + dropout(read, self.dropout, key), SkipState(states, memory)
