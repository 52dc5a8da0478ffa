"""A residual stack of memories is a memory: `x = x + layer(norm(x))`, states threaded, repeated
layers scanned."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from memjax.core import Memory, as_state, channel, checks, clean
from memjax.core.layers import RMSNorm, dropout
from memjax.core.module import stack, without_held
from memjax.core.sequence_sharding import SequenceSharding, constrain
from memjax.core.state import stack_depths, stack_key

Factory = Callable[..., Memory]  # factory(dim, rngs=rngs)

INPUT = "block_input"  # the name under which blocks' inputs are offloaded

REMAT = {
  "full": None,  # keep the input of a block only
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[], names_which_can_be_offloaded=[INPUT],
    offload_src="device", offload_dst="pinned_host",
  ),
}  # fmt: skip


@as_state
class StackState:
  """States by depth; layers that run in one scan stand stacked under a `stack_key`: leaves `[L, B,
  ...]`."""

  layers: dict[str, Any]


class Layer(nnx.Module):
  """One layer of a stack: `x + memory(norm(x))`, or `memory(x)` for a memory with `residual =
  False`."""

  def __init__(self, memory: Memory, dim: int, norm: Callable, rngs: nnx.Rngs):
    self.memory, self.sequence_sharding = memory, None
    self.norm = norm(dim, rngs=rngs) if memory.residual else None

  def __call__(self, x, state, *, reset, valid, context, rate: float):
    h = x if self.norm is None else self.norm(x)
    if self.norm is not None:
      channel.emit("input", h)
    if self.sequence_sharding is not None:
      self.check_layout(self.sequence_sharding, x.shape[1])
      h = constrain(h, self.sequence_sharding, whole=not self.memory.cuts_time)
    y, state = self.memory(h, state, reset=reset, valid=valid, context=context)
    if self.norm is not None:
      key = None if context is None or context.key is None else jax.random.fold_in(context.key, 1)
      y = x + dropout(y, rate, key)
    return constrain(y, self.sequence_sharding), state

  def check_layout(self, sharding: SequenceSharding, length: int | None) -> None:
    """As `Memory.check_layout`."""
    self.memory.check_layout(sharding, length)
    segment = self.memory.granularity
    if sharding.time and length is not None and length > segment > 1:
      raise ValueError(
        f"{type(self.memory).__name__}, a layer of a Stack, works in segments of {segment} tokens, "
        f"and a call has {length}: where time is cut, over {sharding.time}, its neighbours would "
        f"need another order of tokens. Give T = {segment}, or put it around the Stack"
      )


class Stack(Memory):
  """A pattern of layers repeated `repeats` times, with exceptions by index, then a final norm.

  A repetition is one block, `pattern` its layers in order (say attention, feed-forward).
  Neighbouring blocks of the same
  factories are stacked and run by one scan, so compile time does not grow with depth. Depth counts
  layers, not blocks.

  Args:
    dim: model width D.
    pattern: factories of one block's layers; each is called as `factory(dim, rngs=rngs)`.
    repeats: number of blocks.
    exceptions: `{block index: factories}` of the blocks that are built otherwise.
    norm: factory of the norms, called as `norm(dim, rngs=rngs)`.
    final_norm: normalise the output.
    dropout: rate on each residual branch; needs `context.key`.
    remat: None keeps activations; "full" keeps each block's input only; "dots" keeps matrix
      products as well; "offload" is "full" with the inputs in the host's memory.

  State: `StackState`.
  """

  residual = False
  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    pattern: Sequence[Factory],
    repeats: int = 1,
    exceptions: Mapping[int, Sequence[Factory]] | None = None,
    norm: Callable = RMSNorm,
    final_norm: bool = True,
    dropout: float = 0.0,
    remat: str | None = None,
    rngs: nnx.Rngs,
  ):
    checks.positive(dim=dim, repeats=repeats)
    checks.fraction(dropout=dropout)
    checks.one_of("remat", remat, (None, *REMAT))
    self.dim, self.dropout, self.remat = dim, dropout, remat
    self.layers = nnx.Dict()
    groups, depth = [], 0
    for factories, count in _runs(tuple(pattern), repeats, exceptions or {}):
      keys = []
      for position, factory in enumerate(factories):
        key = (
          stack_key(depth + position, len(factories), count) if count > 1 else str(depth + position)
        )
        self.layers[key] = _make(factory, dim, norm, count, rngs)
        keys.append(key)
      groups.append(tuple(keys))
      depth += len(factories) * count
    self.groups, self.depth = tuple(groups), depth
    self.norm = norm(dim, rngs=rngs) if final_norm else None
    memories = [layer.memory for layer in self.layers.values()]
    self.granularity = math.lcm(*(memory.granularity for memory in memories))
    self.causal = all(memory.causal for memory in memories)

  def init_state(self, batch: int) -> StackState:
    states = {}
    for keys in self.groups:
      for key in keys:
        layer = self.layers[key]
        if stack_depths(key) is None:
          states[key] = layer.memory.init_state(batch)
        else:
          states[key] = jax.vmap(lambda layer: layer.memory.init_state(batch))(layer)
    return StackState(states)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x, states = clean(x, valid), {}

    def block(keys, index, x, layers, states):
      # At the top: what enters a block is kept by the loop around it, not by the block before.
      x, new = checkpoint_name(x, INPUT), []
      for key, layer, layer_state in zip(keys, layers, states, strict=True):
        depths = stack_depths(key)
        depth = (depths or (int(key),))[0] + index * len(keys)
        inner = None if context is None else context.fold(depth)
        with channel.scope(key, None if depths is None else index):
          x, layer_state = layer(
            x, layer_state, reset=reset, valid=valid, context=inner, rate=self.dropout
          )
        new.append(layer_state)
      return x, tuple(new)

    for keys in self.groups:
      layers, group = [self.layers[key] for key in keys], [state.layers[key] for key in keys]
      depths = stack_depths(keys[0])
      if depths is None:
        x, new = self._rematerialise(functools.partial(block, keys, 0), x, layers, group)
      else:
        x, new = self._scan(functools.partial(block, keys), x, layers, group, len(depths))
      states.update(zip(keys, new, strict=True))
    return (x if self.norm is None else self.norm(x)), StackState(states)

  def _rematerialise(self, fn, *args, in_scan: bool = False):
    if self.remat is None:
      return fn(*args)
    return channel.checkpoint(fn, *args, policy=REMAT[self.remat], prevent_cse=not in_scan)

  def _scan(self, block, x, layers, states, count: int):
    index = jnp.arange(count)
    layers, whole = without_held(layers)
    if x.shape[1] == 1:  # decoding: states stay in the carry and are updated in place

      def step(carry, inputs):
        x, states = carry
        layers, i = inputs
        mine = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), states)
        x, mine = block(i, x, whole(layers), mine)
        put = lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0)  # noqa: E731
        return (x, jax.tree.map(put, states, list(mine))), None

      (x, states), _ = channel.scan(step, (x, states), (layers, index), axis="layers")
      return x, states

    def body(x, inputs):
      layers, states, i = inputs
      return self._rematerialise(block, i, x, whole(layers), states, in_scan=True)

    return channel.scan(body, x, (layers, states, index), axis="layers")


def _runs(pattern, repeats: int, exceptions: Mapping[int, Sequence[Factory]]):
  """(factories, how many blocks in a row) from the first block to the last."""
  for index in exceptions:
    if not 0 <= index < repeats:
      raise ValueError(
        f"exceptions names block {index}, but repeats={repeats} (blocks 0 to {repeats - 1})"
      )
  if not pattern:
    raise ValueError(
      "pattern is empty; give at least one factory, such as functools.partial(Attention, heads=4)"
    )
  start = 0
  while start < repeats:
    if start in exceptions:
      end = start + 1
      while end in exceptions and tuple(exceptions[end]) == tuple(exceptions[start]):
        end += 1
      yield tuple(exceptions[start]), end - start
      start = end
      continue
    end = min([i for i in exceptions if i > start], default=repeats)
    yield pattern, end - start
    start = end


def _make(factory: Factory, dim: int, norm: Callable, count: int, rngs: nnx.Rngs) -> Layer:
  def make(rngs):
    memory = factory(dim, rngs=rngs)
    if not isinstance(memory, Memory):
      raise TypeError(
        f"a layer's factory returned {type(memory).__name__}; it must return a Memory"
      )
    return Layer(memory, dim, norm, rngs)

  return make(rngs) if count == 1 else stack(make, count, rngs)
