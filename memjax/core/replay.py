"""Memory replay back-propagation (Memformer, arXiv 2010.06891) for every loop over time.

The gradient is that of the whole sequence, not a truncated one: the forward pass keeps the states
between steps only, the backward pass runs each step again. Keys are folded by step, so that dropout
repeats. T steps, a state of |M| bytes:

    Replay()                 keeps T |M|, and one step's activations at a time
    Replay(every=s)          keeps (T / s + s) |M|: least at s = sqrt(T), which `every=None` takes
    Replay(offload=...)      the same, in the host's memory
    Replay(detach_every=k)   no gradient crosses a state before steps 0, k, 2k, ...
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from memjax.core import channel, checks

HOST = "pinned_host"
STATE = "replay_state"  # the name under which states are offloaded


@dataclasses.dataclass(frozen=True)
class Replay:
  """What back-propagation keeps of a loop over time, and what it runs again.

  Attributes:
    every: steps s between two states that are kept; the steps of a group are run twice more, one
      group at a time. None: the square root of the number of steps.
    steps: within a group every step is run again by itself. False: the group's activations are kept
      while it is back-propagated, which spares a forward pass and suits steps that are small.
    offload: None, or "pinned_host": kept states wait in the host's memory.
    detach_every: k, truncated back-propagation: the state before steps 0, k, 2k, ... counts as
      given. Also the first state of the call, which then gets no gradient, even if it is learned
      (that of a reset does). None: never.

  Raises:
    ValueError: a value is out of range.
  """

  every: int | None = 1
  steps: bool = True
  offload: str | None = None
  detach_every: int | None = None

  def __post_init__(self):
    given = {"every": self.every, "detach_every": self.detach_every}
    checks.positive(**{name: value for name, value in given.items() if value is not None})
    checks.one_of("offload", self.offload, (None, HOST))
    if self.every == 1 and not self.steps:
      raise ValueError("steps=False with every=1 would keep nothing less: take every=None or more")


def as_replay(remat) -> Replay | None:
  """The `remat` argument of a memory: None keeps activations, "full" is `Replay()`, for steps that
  are large; "sqrt" is `Replay(every=None, steps=False)`, for many small ones.

  Raises:
    ValueError: anything else that is no `Replay`.
  """
  if remat is None or isinstance(remat, Replay):
    return remat
  if remat == "full":
    return Replay()
  if remat == "sqrt":
    return Replay(every=None, steps=False)
  raise ValueError(
    f"remat={remat!r} is not one of None, 'full', 'sqrt', Replay(every=..., offload=...)"
  )


def replay_scan(body, carry, xs, replay: Replay | None = None, *, unroll: int = 1):
  """`jax.lax.scan(body, carry, xs)` that back-propagates as `replay` says; None: as usual.

  Values are the same, and so are gradients, but for `detach_every`. What the body emits arrives as
  from `channel.scan`, stacked by step, and taps reach it. To weight the losses of segments,
  multiply their outputs.

  Args:
    body: `(carry, x) -> (carry, y)`.
    xs: a pytree of `[T, ...]`, T >= 1.
  """
  loop = jax.lax.scan if replay is None else functools.partial(_loop, replay)
  return channel.scan(body, carry, xs, unroll=unroll, loop=loop, axis="time")


def _loop(replay: Replay, body, carry, xs, length: int, unroll: int):
  every = math.isqrt(length) if replay.every is None else min(replay.every, length)
  body, xs = _detached(body, replay.detach_every), (jnp.arange(length), xs)
  step = jax.checkpoint(body, prevent_cse=False) if replay.steps else body

  def run(carry, xs):
    if every > 1:
      return jax.lax.scan(step, carry, xs, unroll=unroll)
    carry, y = body(carry, jax.tree.map(lambda a: a[0], xs))
    return carry, jax.tree.map(lambda a: a[None], y)

  def cut(start, end):
    return jax.tree.map(lambda a: a[start:end], xs)

  group = functools.partial(jax.checkpoint, _named(run), policy=_policy(replay.offload))
  groups, parts, start = length // every, [], 0
  if groups > 1:
    start = groups * every
    whole = jax.tree.map(lambda a: a.reshape(groups, every, *a.shape[1:]), cut(0, start))
    # In a loop the compiler cannot take the second run for the first and leave it out.
    carry, ys = jax.lax.scan(group(prevent_cse=False), carry, whole)
    parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys))
  for first in range(start, length, every):
    carry, ys = group()(carry, cut(first, first + every))
    parts.append(ys)
  return carry, parts[0] if len(parts) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _policy(offload: str | None):
  if offload is None:
    return None
  return jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[], names_which_can_be_offloaded=[STATE],
    offload_src="device", offload_dst=offload,
  )  # fmt: skip


def _named(body):
  """At its top: what enters a step is kept by the loop around it, so that a name given at the end
  of the step before would change nothing."""

  def named(carry, xs):
    return body(_floats(lambda a: checkpoint_name(a, STATE), carry), xs)

  return named


def _detached(body, every: int | None):
  def detached(carry, inputs):
    t, x = inputs
    if every == 1:
      carry = _floats(jax.lax.stop_gradient, carry)
    elif every is not None:
      cut = t % every == 0
      carry = _floats(lambda a: jnp.where(cut, jax.lax.stop_gradient(a), a), carry)
    return body(carry, x)

  return detached


def _floats(fn, tree):
  return jax.tree.map(lambda a: fn(a) if jnp.issubdtype(a.dtype, jnp.inexact) else a, tree)
