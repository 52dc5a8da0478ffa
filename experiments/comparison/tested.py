"""What trained models do on the test settings, with and without what they carry, and how much that
is."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flops
from experiments.comparison import program
from experiments.comparison.shell import Ports, Shell, room
from experiments.comparison.tasks import Setup, Test
from memjax.core import join
from memjax.tasks.task import TEST, Batch, Task

STREAM_ENOUGH = 0.6  # a stream that has fallen below it is not run on


@functools.lru_cache(maxsize=256)
def length_of(task: Task) -> int:
  """Tokens of an example."""
  return jax.eval_shape(lambda: task.sample(0, TEST, jnp.arange(2))).inputs.shape[1]


@functools.lru_cache(maxsize=256)
def examples(task: Task, count: int) -> Batch:
  """The test examples, the same for every memory, as arrays of numpy."""
  return jax.device_get(jax.jit(lambda: task.sample(0, TEST, jnp.arange(count)))())


def state_leaves(model: Shell, inputs, segment: int) -> list[bool]:
  """Which leaves of the state a whole segment of tokens changes: those that something crosses a
  segment's border in. Open segments are empty there again."""

  carries = room(model, segment)

  @jax.jit
  def changed(inputs):
    start = carries.init_state(1)
    _, state = carries(inputs, start)
    return [jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, state)), strict=True)]

  return [bool(a) for a in changed(inputs)]


def state_bytes(model: Shell, leaves: list[bool], length: int) -> int:
  """Bytes a sequence of the leaves that count, with room for `length` tokens."""
  state = jax.eval_shape(lambda: room(model, length).init_state(1))
  each = zip(jax.tree.leaves(state), leaves, strict=True)
  return sum(a.size * a.dtype.itemsize for a, counts in each if counts)


def flops_per_token(model: Shell, inputs, length: int) -> float:
  """Of a forward pass over `length` tokens."""
  shape = jax.ShapeDtypeStruct((1, length, *inputs.shape[2:]), inputs.dtype)
  return flops.count(lambda m, x: m(x, m.init_state(1))[0], model, shape) / length


@dataclasses.dataclass
class Result:
  """Of one test setting and control: by example and seed `[S, B]` the metrics `acc`, `em` and
  `bits` a sequence; and what was guessed, `[S, B, T]`."""

  test: Test
  control: str
  scores: dict[str, np.ndarray]
  predicted: np.ndarray
  batch: Batch


class Tester:
  """Runs models over the test settings.

  Args:
    setup, ports: of the task.   segment: tokens a call.   count: examples of a setting.
  """

  def __init__(self, setup: Setup, ports: Ports, segment: int, count: int):
    self.setup, self.ports, self.segment, self.count = setup, ports, segment, count
    self.length = program.segmented(setup.longest, segment)
    self.run = program.make_runner(ports, segment=segment, length=self.length)

  def __call__(self, params, rests, test: Test, *, forget: bool = False) -> Result:
    batch = examples(test.task, self.count)
    length = batch.mask.shape[1]
    wide = program.padded(batch, self.length)
    parts = -(-length // self.segment)
    predicted, nats = jax.device_get(self.run(params, rests, wide, parts, forget))
    predicted = predicted[:, :, :length]
    scores = {
      name: np.stack([program.measured(self.ports, p, batch, name) for p in predicted])
      for name in ("acc", "em")
    }
    scores["bits"] = nats / np.log(2)
    return Result(test, "zeroed" if forget else "", scores, predicted, batch)


def stream(setup: Setup, ports: Ports, params, rests, segment: int, count: int, tell=print):
  """Success at the lengths of `setup.streams`, `(length, [S, B])`, of one stream of observations
  with the end shown at each length; where all seeds have fallen below `STREAM_ENOUGH` it ends.

  The task has `chunk` and `length`, and what is seen before its end does not depend on that.
  """
  endless: Any = dataclasses.replace(cast(Any, setup.train[0]), length=2**31 - 1)
  index = jnp.arange(count)

  def over_seeds(fn):
    return jax.jit(jax.vmap(fn, in_axes=(0, 0, 0, None, None)))

  def right(model, state, part):
    logits, state = model(part.inputs, state)
    good = program.right(ports, program.guessed(ports, logits), part)
    return jnp.all((good == 1) | ~part.mask, axis=1), state

  @over_seeds
  def walk(params, rest, carry, first, parts):
    model = room(join(params, rest), segment)

    def step(i, carry):
      state, so_far = carry
      part = endless.chunk(0, TEST, index, (first + i) * segment, segment)
      good, state = right(model, state, part)
      return state, so_far & good

    return jax.lax.fori_loop(0, parts, step, carry)

  @over_seeds
  def probe(params, rest, carry, part, _):
    return carry[1] & right(room(join(params, rest), segment), carry[0], part)[0]

  begin = lambda p, r: (room(join(p, r), segment).init_state(count), jnp.ones(count, bool))  # noqa: E731
  carry, at = jax.jit(jax.vmap(begin))(params, rests), 0
  for length in setup.streams:
    last = (length - 1) // segment
    while at < last:
      parts = min(2000, last - at)
      carry = jax.block_until_ready(walk(params, rests, carry, at, parts))
      at += parts
    task = dataclasses.replace(endless, length=length)
    part = task.chunk(0, TEST, index, last * segment, segment)
    inside = last * segment + jnp.arange(segment) < length
    part = dataclasses.replace(part, mask=part.mask & inside[None], meta={})
    success = np.asarray(probe(params, rests, carry, part, 0))
    yield length, success.astype(np.float32)
    if success.mean(axis=1).max() < STREAM_ENOUGH:
      return
