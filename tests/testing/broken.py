"""Memories that break one law each, beside the good one that they are made from.

`BROKEN` names the parts of laws that catch each of them: its own law's, and those that follow from
it, with the reason.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from memjax.core import Memory, as_state, clean, leaf, param, scan, segments, select
from memjax.core.state import stack_key

DIM, WIDTH = 4, 8


@as_state
class Leak:
  h: jax.Array = leaf("memory")
  count: jax.Array = leaf()


class Good(Memory):
  """h_t = 0.8 h_{t-1} + tanh(x_t W), y_t = h_t R, h_0 learned."""

  def __init__(self, *, rngs: nnx.Rngs):
    normal = nnx.initializers.normal(0.5)
    self.write = param(rngs, normal, (DIM, WIDTH), axes=("embed", "memory"))
    self.read = param(rngs, normal, (WIDTH, DIM), axes=("memory", "embed"))
    self.start = param(rngs, normal, (WIDTH,), axes=("memory",))

  def init_state(self, batch):
    h = jnp.tile(self.start[...].astype(jnp.float32)[None], (batch, 1))
    return Leak(h, jnp.zeros((batch,), jnp.int32))

  def step(self, x, state, context):
    h = 0.8 * state.h + jnp.tanh(x @ self.write[...].astype(x.dtype))
    return (h @ self.read[...]).astype(x.dtype), Leak(h, state.count + 1)

  def run(self, x, state, **flags):
    return scan(self.step, x, state, init=self.init_state(x.shape[0]), **flags)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return self.run(x, state, reset=reset, valid=valid)


# ---- types


class StateTakesDtype(Good):
  def __call__(self, x, state, **flags):
    flags.pop("context", None)
    y, new = self.run(x, state, **flags)
    return y, Leak(new.h.astype(x.dtype), new.count)


class OutputFloat32(Good):
  def __call__(self, x, state, **flags):
    flags.pop("context", None)
    y, new = self.run(x, state, **flags)
    return y.astype(jnp.float32), new


class Grows(Good):
  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    return y, Leak(jnp.concatenate([new.h, new.h], axis=1), new.count)


class WrongAxes(Good):
  def init_state(self, batch):
    return Leak(super().init_state(batch).h, jnp.zeros((), jnp.int32))


class HeldTwice(Good):
  def __init__(self, *, rngs):
    super().__init__(rngs=rngs)
    self.again = self.write


# ---- split


class ForgetsTail(Good):
  """A convolution over two tokens, whose tail is not in the state."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, state = self.run(x, state, reset=reset, valid=valid)
    return y + before(x, reset, valid), state


def before(x, reset, valid):
  """The valid token before each token in the same sequence of this call; 0 where there is none."""
  reset = jnp.zeros(x.shape[:2], bool) if reset is None else reset
  valid = jnp.ones(x.shape[:2], bool) if valid is None else valid

  def step(last, inputs):
    x_t, reset_t, valid_t = inputs
    last = jnp.where(reset_t[:, None], 0, last)
    return jnp.where(valid_t[:, None], x_t, last), last

  inputs = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (clean(x, valid), reset, valid))
  return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(x[:, 0]), inputs)[1], 0, 1)


class CountsCalls(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    called = jnp.ones((x.shape[0],), bool) if valid is None else valid.any(axis=1)
    return y, Leak(new.h, state.count + called)


class DecodesOtherwise(Good):
  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    return (y * 1.01 if x.shape[1] == 1 else y), new


class StopsGradient(Good):
  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    return y, jax.tree.map(jax.lax.stop_gradient, new)


# ---- reset


class IgnoresReset(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return self.run(x, state, valid=valid)


class MultipliesReset(Good):
  """h * (1 - reset): NaN * 0 is NaN."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    if reset is not None:
      first, init = reset[:, :1], self.init_state(x.shape[0])
      state = Leak(state.h * (1 - first) + init.h * first, state.count)
      reset = reset.at[:, 0].set(False)
    return self.run(x, state, reset=reset, valid=valid)


class ConstantReset(Good):
  """The state after a reset is a constant: init_state's parameter gets no gradient there."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    init = jax.tree.map(jax.lax.stop_gradient, self.init_state(x.shape[0]))
    return scan(self.step, x, state, init=init, reset=reset, valid=valid)


class FirstResetOnly(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    if reset is not None:
      reset = reset & (jnp.cumsum(reset, axis=1) == 1)
    return self.run(x, state, reset=reset, valid=valid)


class OneRowsReset(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    if reset is not None:
      reset = jnp.broadcast_to(reset[:1], reset.shape)
    return self.run(x, state, reset=reset, valid=valid)


class Overflows(Good):
  """g = u^2 / (1 + u^2) with u = x W: infinite before the reset, and 0 * inf behind it."""

  def step(self, x, state, context):
    u = jnp.square(x @ self.write[...].astype(x.dtype))
    h = 0.8 * state.h + u / (1 + u)
    return (h @ self.read[...]).astype(x.dtype), Leak(h, state.count + 1)


class FlagsChangeResult(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    return (y if reset is None else y * 1.01), new


class StateNotReset(Good):
  """The outputs see the reset, the state returned does not."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, _ = self.run(x, state, reset=reset, valid=valid)
    return y, self.run(x, state, valid=valid)[1]


# ---- padding


class WritesPadding(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return self.run(clean(x, valid), state, reset=reset)


class MultipliesPadding(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    return y + (x if valid is None else x * valid[..., None]), new


class MasksTooLate(Good):
  """`where` after the product: NaN in padding meets a zero cotangent."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    skip = x @ self.write[...].astype(x.dtype) @ self.read[...].astype(x.dtype)
    return y + clean(skip, valid), new


class CountsPaddingInGradient(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    if valid is None:
      return y, new
    extra = jnp.sum(~valid) * jnp.sum(self.read[...])
    return y + (extra - jax.lax.stop_gradient(extra)).astype(y.dtype), new


class DecaysOnEmptyCall(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    if valid is None:
      return y, new
    return y, select(valid.any(axis=1), new, Leak(0.9 * new.h, new.count))


class NoResetOnPadding(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    if reset is not None and valid is not None:
      reset = reset & valid
    return self.run(x, state, reset=reset, valid=valid)


# ---- causality


class LooksAhead(Good):
  """Adds the next token of the same sequence."""

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, state = self.run(x, state, reset=reset, valid=valid)
    flip = lambda a: None if a is None else a[:, ::-1]  # noqa: E731
    if reset is not None:  # read backwards, a sequence begins where the next one's reset was
      ids = segments(reset, x.shape[:2])
      reset = jnp.concatenate([ids[:, 1:] != ids[:, :-1], jnp.zeros_like(reset[:, :1])], axis=1)
    return y + flip(before(flip(x), flip(reset), flip(valid))), state


# ---- rows


class UsesRowNumber(Good):
  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    return y + jnp.arange(x.shape[0], dtype=y.dtype)[:, None, None], new


class ZeroTimesOtherRows(Good):
  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    y, new = self.run(x, state, reset=reset, valid=valid)
    return y + 0 * clean(x, valid).mean(axis=0, keepdims=True), new


@as_state
class Layers:
  layers: dict


KEY = stack_key(0, 1, 2)


class TakesAxisByPosition(Good):
  """States of two layers, [L, B, W]: `valid` selects on the first axis, and L == B hides it."""

  def init_state(self, batch):
    state = super().init_state(batch)
    return Layers({KEY: jax.tree.map(lambda a: jnp.stack([a, a]), state)})

  def step(self, x, state, context):
    x, valid = x
    old = state.layers[KEY]
    y, first = super().step(x, jax.tree.map(lambda a: a[0], old), None)
    y, second = super().step(y, jax.tree.map(lambda a: a[1], old), None)
    new = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)
    pick = lambda a, b: jnp.where(valid.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
    return y, Layers({KEY: jax.tree.map(pick, new, old)})

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    valid = jnp.ones(x.shape[:2], bool) if valid is None else valid
    return self.run((clean(x, valid), valid), state, reset=reset)

  def run(self, x, state, **flags):
    return scan(self.step, x, state, init=self.init_state(x[0].shape[0]), **flags)


# ---- implementations


@jax.custom_vjp
def _decay(h):
  return 0.8 * h


_decay.defvjp(lambda h: (0.8 * h, None), lambda _, g: (g,))


class WrongBackward(Good):
  """The fast form's custom VJP forgets the decay."""

  def __init__(self, *, rngs):
    super().__init__(rngs=rngs)
    self.implementation = "reference"

  def step(self, x, state, context):
    if self.implementation == "reference":
      return super().step(x, state, context)
    h = _decay(state.h) + jnp.tanh(x @ self.write[...].astype(x.dtype))
    return (h @ self.read[...]).astype(x.dtype), Leak(h, state.count + 1)


class WrongValues(WrongBackward):
  def step(self, x, state, context):
    y, new = Good.step(self, x, state, context)
    return (y if self.implementation == "reference" else 1.01 * y), new


# ---- compile


class WeakInit(Good):
  def init_state(self, batch):
    return Leak(jnp.full((batch, WIDTH), 0.1), super().init_state(batch).count)


@as_state
class Pair:
  a: jax.Array = leaf("memory")
  b: jax.Array = leaf("memory")


class OneBuffer(Good):
  def init_state(self, batch):
    zeros = jnp.zeros((batch, WIDTH))
    return Pair(zeros, zeros)

  def step(self, x, state, context):
    y, new = super().step(x, Leak(state.a, jnp.zeros(x.shape[:1], jnp.int32)), context)
    return y, Pair(new.h, state.b)


class StateIsParameter(Good):
  def __init__(self, *, rngs):
    super().__init__(rngs=rngs)
    self.start = param(rngs, nnx.initializers.normal(0.5), (2, WIDTH), axes=("rows", "memory"))

  def init_state(self, batch):
    return Leak(self.start[...], jnp.zeros((batch,), jnp.int32))


class InitDependsOnTracing(Good):
  def init_state(self, batch):
    state = super().init_state(batch)
    return state if isinstance(state.h, jax.core.Tracer) else Leak(state.h + 1, state.count)


# ---- sharding


class GathersState(Good):
  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    if jax.sharding.get_abstract_mesh().empty:
      return y, new
    return y, jax.lax.with_sharding_constraint(new, jax.tree.map(lambda a: PartitionSpec(), new))


class ForgetsPsum(Good):
  """A product over the sharded width in shard_map, without the sum over the devices."""

  def __call__(self, x, state, **flags):
    y, new = super().__call__(x, state, **flags)
    x = clean(x, flags.get("valid"))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
      return y + x @ jnp.ones((DIM, 1), x.dtype), new
    rows = ("data", "fsdp")
    product = jax.shard_map(
      lambda a: a @ jnp.ones((a.shape[-1], 1), a.dtype),
      in_specs=PartitionSpec(rows, None, "model"), out_specs=PartitionSpec(rows), check_vma=False,
    )  # fmt: skip
    return y + product(x), new


class UnknownAxis(Good):
  def __init__(self, *, rngs):
    super().__init__(rngs=rngs)
    self.start = param(rngs, nnx.initializers.normal(0.5), (WIDTH,), axes=("warehouse",))


# ---- remembers


class Forgets(Good):
  def step(self, x, state, context):
    h = jnp.tanh(x @ self.write[...].astype(x.dtype)).astype(jnp.float32)
    return (h @ self.read[...]).astype(x.dtype), Leak(h, state.count + 1)


_HIDDEN: list = []


class HidesState(Good):
  """Keeps its last state beside the contract as well, and prefers it: a cache on the module."""

  def __call__(self, x, state, **flags):
    if _HIDDEN and _HIDDEN[0] is self:
      state = _HIDDEN[1]
    y, new = super().__call__(x, state, **flags)
    _HIDDEN[:] = [self, new]
    return y, new


BROKEN = {
  StateTakesDtype: {"types:dtypes"},
  OutputFloat32: {"types:dtypes"},
  Grows: {"types:shapes"},  # no other law is run
  WrongAxes: {"types:axes"},
  HeldTwice: {"types:duplicates"},
  ForgetsTail: {"split:values", "split:decoding"},
  CountsCalls: {"split:state", "split:decoding"},
  DecodesOtherwise: {"split:decoding"},
  StopsGradient: {"split:gradients"},
  IgnoresReset: {
    "reset:values",
    "reset:state",
    "reset:several",
    "reset:nan state",
    "reset:overflow",
  },
  MultipliesReset: {"reset:nan state"},
  # A reset at token 0 is compared with a first state that has its gradient.
  ConstantReset: {"reset:gradients", "reset:nan state", "reset:overflow"},
  FirstResetOnly: {"reset:several", "reset:nan state"},  # the latter resets twice
  OneRowsReset: {"reset:several"},
  Overflows: {"reset:overflow"},
  FlagsChangeResult: {"reset:flags"},
  StateNotReset: {"reset:state"},
  WritesPadding: {"padding:values", "padding:nothing valid", "padding:reset"},
  MultipliesPadding: {"padding:nan", "padding:nothing valid"},
  MasksTooLate: {"padding:nan gradients"},
  CountsPaddingInGradient: {"padding:gradients"},
  DecaysOnEmptyCall: {"padding:nothing valid"},
  NoResetOnPadding: {"padding:reset"},
  # What looks ahead cannot be split either, and sees across the end that a reset makes.
  LooksAhead: {"causality:values", "split:values", "split:decoding", "reset:several"},
  UsesRowNumber: {"rows:permuted"},
  ZeroTimesOtherRows: {"rows:nan"},
  TakesAxisByPosition: {"padding:values"},
  WrongBackward: {"implementations:gradients"},
  WrongValues: {"implementations:values"},
  WeakInit: {"compile:once"},
  OneBuffer: {"compile:donation"},
  StateIsParameter: {"compile:donation"},
  InitDependsOnTracing: {"compile:init"},
  GathersState: {"sharding:state"},
  ForgetsPsum: {"sharding:values"},
  UnknownAxis: {"sharding:axes"},
  Forgets: {"remembers:accuracy"},
  HidesState: {"remembers:twin"},
}
