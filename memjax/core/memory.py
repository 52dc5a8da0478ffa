"""The contract: `y, state = memory(x, state, *, reset=None, valid=None, context=None)` and
`memory.init_state(batch)`."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import channel
from memjax.core.replay import Replay, replay_scan
from memjax.core.sequence_sharding import SequenceSharding
from memjax.core.state import select
from memjax.core.table_sharding import described


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What a call may read besides its tokens; passed on by every combinator, ignored by whoever
  does not need it.

  Attributes:
    key: a JAX random key; None means no dropout and no noise. Combinators fold in the layer, the
      step, the segment.
    shared: arrays equal for all tokens, by name (a pool of values, a bank of records).
    tokens: arrays `[B, T, ...]` by name, cut and folded along with x (positions, attention spans,
      encoder features).
  """

  key: jax.Array | None = None
  shared: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokens: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

  def fold(self, index) -> "Context":
    """The same context with `index` folded into the key."""
    return (
      self
      if self.key is None
      else dataclasses.replace(self, key=jax.random.fold_in(self.key, index))
    )

  def with_tokens(self, tokens: dict) -> "Context":
    """The same context with other per-token arrays."""
    return dataclasses.replace(self, tokens=tokens)


class Memory(nnx.Module, abc.ABC):
  """A module with `init_state(batch) -> state` and `memory(x, state) -> y, state`. Its laws are in
  `memjax.testing`.

  Attributes:
    granularity: resets and splits are exact at multiples of this many tokens.
    residual: True: a `Stack` adds the output to its input; False: the output is the layer's new
      activation itself.
    causal: False for a memory over a set or an encoder; the causality law is then not asked of it.
    cuts_time: tokens may lie cut over devices along time (`core.sharding`): each is worked on
      alone, or what must cross the borders does. False: all tokens must be on every device.
  """

  granularity: int = 1
  residual: bool = True
  causal: bool = True
  cuts_time: bool = False

  @abc.abstractmethod
  def init_state(self, batch: int) -> Any:
    """The state before the first token of `batch` rows; may depend on parameters, and receives
    their gradients."""

  @abc.abstractmethod
  def __call__(self, x, state, *, reset=None, valid=None, context=None) -> tuple[Any, Any]:
    """Reads and updates the memory.

    Args:
      x: `[B, T, D]` float, any T >= 1 (segment memories: a multiple of `granularity`, or less).
      state: as returned by `init_state` or by the last call; never None.
      reset: `[B, T]` bool. True: before token t the row's state becomes `init_state`; nothing
        before t is visible to t.
      valid: `[B, T]` bool. False: the token leaves the state as it was; its own output is
        unspecified but finite.
      context: see `Context`.

    Returns:
      y: `[B, T, D]`, dtype of x.   state: structure, shapes and dtypes as given.
    """

  def check_layout(self, sharding: SequenceSharding, length: int | None) -> None:
    """Raises ValueError if the memory cannot work on `length` tokens that lie so on a mesh."""
    if sharding.time and not self.cuts_time and not sharding.gather_time:
      cut = described(sharding.mesh, sharding.time)
      raise ValueError(
        f"{type(self).__name__} goes through the tokens one after another, but time is cut over "
        f"{cut}: every device would gather the whole sequence. Leave time whole "
        "(rules | {'time': None}), or ask for it with gather_time=True"
      )


def clean(x: jax.Array, valid: jax.Array | None) -> jax.Array:
  """`x [B, T, ...]` with tokens that are not valid set to zero, so that NaN in padding reaches
  neither values nor gradients."""
  if valid is None:
    return x
  return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, jnp.zeros((), x.dtype))


def bounded(x: jax.Array, largest: float) -> jax.Array:
  """`x` within +-largest, no gradient outside: a token that overflows leaves no NaN in gradients.

  A NaN stays NaN. `jnp.clip` does the same, but its gradient costs as much as a matrix product.
  """
  limit = min(largest, float(jnp.finfo(x.dtype).max))
  return jax.lax.clamp(jnp.asarray(-limit, x.dtype), x, jnp.asarray(limit, x.dtype))


def segments(reset: jax.Array | None, shape: tuple[int, int]) -> jax.Array:
  """Segment ids `[B, T] int32` from reset flags: equal where no reset lies between; the carried-in
  segment is 0."""
  if reset is None:
    return jnp.zeros(shape, jnp.int32)
  return jnp.cumsum(reset.astype(jnp.int32), axis=1)


def scan(
  step, x, state, *, init, reset=None, valid=None, context: Context | None = None, unroll: int = 1,
  remat: Replay | None = None,
) -> tuple[Any, Any]:  # fmt: skip
  """Runs `y_t, state = step(x_t, state, context_t)` over axis 1: the reference semantics of every
  memory.

  Args:
    step: `(x_t [B, D], state, context) -> (y_t [B, D'], state)`; `context.tokens` then holds `[B,
      ...]`.
    x: `[B, T, D]`, or any pytree of `[B, T, ...]`.
    state: the state before the first token.   init: the state that a reset brings back.
    reset, valid, context: as in `Memory.__call__`.   unroll: steps a loop iteration.
    remat: what back-propagation keeps of the steps; None: all that it needs.

  Returns:
    y: `[B, T, D']` (or the pytree that step returned), and the last state.
  """
  length = jax.tree.leaves(x)[0].shape[1]
  tokens = context.tokens if context is not None else {}

  def body(state, inputs):
    x_t, reset_t, valid_t, tokens_t, t = inputs
    if reset_t is not None:
      state = select(reset_t, init, state)
    if valid_t is not None:
      x_t = jax.tree.map(lambda a: clean(a[:, None], valid_t[:, None])[:, 0], x_t)
    inner = context.fold(t).with_tokens(tokens_t) if context is not None else None
    y_t, new = step(x_t, state, inner)
    if valid_t is not None:
      new = select(valid_t, new, state)
    return new, y_t

  inputs = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, reset, valid, tokens))
  inputs = (*inputs, jnp.arange(length))
  if length == 1 and remat is None and not channel.tracing():  # decoding: no loop
    state, y = body(state, jax.tree.map(lambda a: a[0], inputs))
    return jax.tree.map(lambda a: a[:, None], y), state
  state, y = replay_scan(body, state, inputs, remat, unroll=unroll)
  return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), y), state
