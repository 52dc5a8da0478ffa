"""Any causal memory, called on a few tokens at a time: fewer activations, the same numbers."""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Replay, Stateless, abstract_state, checks, scan, submodules
from memjax.core.replay import as_replay
from memjax.transformer.stack import Factory


class Chunked(Memory):
  """A memory that takes long inputs in chunks of `size` tokens, one after the other.

  By the contract, outputs and last state are those of one call. Only a chunk's activations are
  there at a time, forwards and (with `remat`) backwards: `[B, size, 4 D]` of a feed-forward instead
  of `[B, T, 4 D]`, for one more forward pass. T <= size, and the tokens beyond the last whole
  chunk, are plain calls. Noise from `context.key` is another in every chunk.

  Args:
    dim: model width D.
    memory: factory of the memory, called as `memory(dim, rngs=rngs)`: a `FeedForward`, a lookup in
      a table, any causal one. Attention must carry what it has seen (`capacity=` at least T, or a
      window).
    size: tokens of a chunk, a multiple of the memory's granularity.
    remat: "full" or a `Replay` over the chunks; None keeps the activations of all for
      back-propagation.

  State: the memory's.

  Raises:
    ValueError: the memory is not causal; size is no multiple of its granularity; attention in it
      carries nothing (in the call).
  """

  def __init__(
    self, dim: int, *, memory: Factory, size: int, remat: str | Replay | None = "full",
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, size=size)
    self.size, self.remat = size, as_replay(remat)
    self.memory = memory(dim, rngs=rngs)
    name = type(self.memory).__name__
    if not self.memory.causal:
      raise ValueError(f"memory is {name}, which is not causal: its tokens need each other")
    if size % self.memory.granularity:
      raise ValueError(
        f"size={size} is not a multiple of the granularity {self.memory.granularity} of {name}"
      )
    self.granularity, self.residual = self.memory.granularity, self.memory.residual
    # Where nothing is carried any tokens can be a chunk: those that leave each on its device.
    self.cuts_time = isinstance(abstract_state(self.memory, 1), Stateless)

  def init_state(self, batch: int):
    return self.memory.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    length, tokens = x.shape[1], {} if context is None else context.tokens
    whole = length // self.size * self.size
    if length <= self.size:
      return self.memory(x, state, reset=reset, valid=valid, context=context)
    self._check_carry()
    inputs = x, reset, valid
    fold, unfold = (_deal, _gather) if self.cuts_time else (_fold, _unfold)

    def cut(tree):
      return jax.tree.map(lambda a: fold(a[:, :whole], self.size), tree)

    def step(inputs, state, context):
      x, reset, valid = inputs
      return self.memory(x, state, reset=reset, valid=valid, context=context)

    inner = None if context is None else context.with_tokens(cut(tokens))
    y, state = scan(step, cut(inputs), state, init=None, context=inner, remat=self.remat)
    y = unfold(y)
    if whole == length:
      return y, state
    rest = jax.tree.map(lambda a: a[:, whole:], (inputs, tokens))
    inner = None if context is None else context.fold(whole).with_tokens(rest[1])
    last, state = step(rest[0], state, inner)
    return jnp.concatenate([y, last], axis=1), state

  def _check_carry(self):
    for module in submodules(self.memory):
      if getattr(module, "capacity", None) == 0:
        raise ValueError(
          f"{type(module).__name__} has capacity=0 and sees the tokens of one call only, which "
          f"size={self.size} cuts short: carry them with core.replace(model, capacity=T)"
        )


def _fold(a, size: int):
  """`[B, T, ...] -> [B, T / size, size, ...]`, neighbours in a chunk."""
  return a.reshape(a.shape[0], -1, size, *a.shape[2:])


def _unfold(a):
  return a.reshape(a.shape[0], -1, *a.shape[3:])


def _deal(a, size: int):
  """As `_fold`, but token t goes to chunk t modulo their number: with T over devices, each works
  on every chunk."""
  return a.reshape(a.shape[0], size, -1, *a.shape[2:]).swapaxes(1, 2)


def _gather(a):
  return _unfold(a.swapaxes(1, 2))
