"""The two compiled programs of a cell: a block of training steps of all learning rates and seeds at
once, and the run of trained models over sequences of any length, a segment a call.

Letters: S seeds, R learning rates, B examples, T tokens, C tokens of a segment.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.comparison.shell import Ports, Shell, room
from memjax.core import join, split
from memjax.tasks.task import TRAIN, VALIDATION, Batch, Task

ENOUGH = 0.99  # of the validation: what counts as solved


@dataclasses.dataclass(frozen=True)
class Training:
  """What all cells of a comparison share.

  Attributes:
    rates: R learning rates.   seeds: S seeds, of parameters and data.   batch: B.
    steps: at most.   block: steps of a call; after each the validation is looked at.
    validation: examples of it.   warmup: share of the steps; then a cosine to `last` of the rate.
    decay: of the weights.   clip: of the gradient's norm.
    enough: training ends where all seeds of a rate have it on validation; above 1: never.
  """

  rates: tuple[float, ...]
  seeds: tuple[int, ...]
  steps: int
  batch: int = 16
  block: int = 50
  validation: int = 96
  warmup: float = 0.05
  last: float = 0.1
  decay: float = 0.01
  clip: float = 1.0
  enough: float = dataclasses.field(default=ENOUGH, repr=False)


def padded(batch: Batch, length: int) -> Batch:
  """The batch with nothing due at `length - T` further tokens of zeros."""
  more, xp = length - batch.mask.shape[1], jnp if isinstance(batch.mask, jax.Array) else np
  pad = lambda a: xp.pad(a, [(0, 0), (0, more)] + [(0, 0)] * (a.ndim - 2))  # noqa: E731
  parts = {name: pad(getattr(batch, name)) for name in ("inputs", "targets", "mask")}
  return dataclasses.replace(batch, **parts, meta={})


@functools.lru_cache(maxsize=32)
def drawer(
  tasks: tuple[Task, ...], seeds: tuple[int, ...], split: int, *, steps: int, count: int,
  length: int,
) -> Callable[[int], Batch]:  # fmt: skip
  """`step -> Batch`, leaves `[steps, S, count, length, ...]`: the examples of `steps` steps from
  that one, of all tasks evenly. Compiled once for all memories, which see the same."""
  shares = [count // len(tasks) + (i < count % len(tasks)) for i in range(len(tasks))]

  def one(step, seed):
    parts = [
      padded(task.sample(seed, split, step * count + jnp.arange(share)), length)
      for task, share in zip(tasks, shares, strict=True) if share
    ]  # fmt: skip
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

  @jax.jit
  def draw(first):
    over_seeds = jax.vmap(one, in_axes=(None, 0))
    body = lambda step: over_seeds(step, jnp.asarray(seeds, jnp.int32))  # noqa: E731
    return jax.lax.map(body, first + jnp.arange(steps))

  return draw


def nats(ports: Ports, logits: jax.Array, batch: Batch) -> jax.Array:
  """Cross-entropy of each place, `[B, T]`, 0 where nothing is due; of bits the sum over them."""
  if ports.classes:
    target = jnp.where(batch.mask, batch.targets, 0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  else:
    each = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, batch.targets), axis=-1)
  return jnp.where(batch.mask, each, 0)


def guessed(ports: Ports, logits: jax.Array) -> jax.Array:
  """Ids `[..., T]` int32, or bits `[..., T, outputs]`."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32) if ports.classes else logits > 0


def right(ports: Ports, predicted: jax.Array, batch: Batch) -> jax.Array:
  """Share right of each place, `[B, T]` float32 (of bits: the mean over them), 0 where nothing is
  due."""
  if ports.classes:
    same = (predicted == batch.targets).astype(jnp.float32)
  else:
    same = (predicted == (batch.targets > 0.5)).mean(axis=-1, dtype=jnp.float32)
  return same * batch.mask


def measured(ports: Ports, predicted: jax.Array, batch: Batch, metric: str) -> jax.Array:
  """ "acc" or "em" of each example, `[B]`; of "acc" the mean over its places."""
  hit = right(ports, predicted, batch)
  if metric == "em":
    return ((hit == 1) | ~batch.mask).all(axis=1).astype(jnp.float32)
  due = batch.mask.sum(axis=1)
  return hit.sum(axis=1) / (due + (due == 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Runs:
  """All runs of a cell: parameters and moments, leaves `[S, R, ...]`."""

  params: Any
  moments: Any


class Trainer:
  """Trains one memory on one task.

  Args:
    make: `key -> Shell`.   ports: of the task.   tasks: settings to mix.   length: T, to which all
      are padded.   metric: of the validation.   training: how.   due: places of an example that
      logits are made for, at least as many as count; None: all.
  """

  def __init__(
    self, make: Callable[[jax.Array], Shell], ports: Ports, tasks: tuple[Task, ...], length: int,
    metric: str, training: Training, due: int | None = None,
  ):  # fmt: skip
    self.due = due
    self.make, self.ports, self.training, self.metric = make, ports, training, metric
    drawn = functools.partial(drawer, tasks, training.seeds, length=length)
    self.draw = drawn(TRAIN, steps=training.block, count=training.batch)
    self.check = drawn(VALIDATION, steps=1, count=training.validation)
    self.optimizer = optax.chain(
      optax.clip_by_global_norm(training.clip),
      optax.scale_by_adam(b2=0.98),
      optax.add_decayed_weights(training.decay),
    )
    self.schedule = optax.warmup_cosine_decay_schedule(
      0.0, 1.0, max(1, round(training.warmup * training.steps)), training.steps, training.last
    )
    self.compiled = jax.jit(self._block, donate_argnums=0)

  def start(self):
    """`Runs` in which every learning rate begins with the same parameters of a seed, and what
    `split` leaves of the S models."""

    def one(seed):
      params, rest = split(self.make(jax.random.key(seed)))
      return Runs(params, self.optimizer.init(params)), rest

    def copies(a):
      return jnp.repeat(a[:, None], len(self.training.rates), axis=1)

    @jax.jit
    def make():
      runs, rests = jax.vmap(one)(self._seeds())
      return jax.tree.map(copies, runs), rests

    return make()

  def _seeds(self) -> jax.Array:
    return jnp.asarray(self.training.seeds, jnp.int32)

  def block(self, runs: Runs, rests, first: int, count: int):
    """`count` steps, at most `training.block`, from step `first`.

    Returns: runs; mean loss `[S, R]` in nats a place; validation `[S, R]`.

    Raises:
      ValueError: an example has more places that count than `due`.
    """
    check, batches = jax.tree.map(lambda a: a[0], self.check(0)), self.draw(first)
    if self.due is not None and (most := int(batches.mask.sum(axis=-1).max())) > self.due:
      raise ValueError(f"due={self.due}, but an example has {most} places that count")
    return self.compiled(runs, rests, batches, check, first, count)

  def _block(self, runs: Runs, rests, batches: Batch, check: Batch, first, count):
    rates = jnp.asarray(self.training.rates)

    def step(i, carry):
      runs, losses = carry
      rate = rates * self.schedule(first + i)

      def one_seed(runs, rest, batch):
        return jax.vmap(lambda runs, rate: self._step(runs, rest, batch, rate))(runs, rate)

      runs, loss = jax.vmap(one_seed)(runs, rests, jax.tree.map(lambda a: a[i], batches))
      return runs, losses + loss

    losses = jnp.zeros((len(self.training.seeds), rates.size))
    runs, losses = jax.lax.fori_loop(0, count, step, (runs, losses))

    def validate(params, rest, batch):
      guess = lambda params: guessed(self.ports, self._logits(params, rest, batch))  # noqa: E731
      score = lambda p: jnp.mean(measured(self.ports, guess(p), batch, self.metric))  # noqa: E731
      return jax.vmap(score)(params)

    return runs, losses / count, jax.vmap(validate)(runs.params, rests, check)

  def _logits(self, params, rest, batch: Batch) -> jax.Array:
    model = join(params, rest)
    return model(batch.inputs, model.init_state(batch.inputs.shape[0]))[0]

  def _step(self, runs: Runs, rest, batch: Batch, rate):
    def loss(params):
      model = join(params, rest)
      h, _ = model.features(batch.inputs, model.init_state(batch.inputs.shape[0]))
      h, owed = self._due(h, batch)
      total = jnp.sum(nats(self.ports, model.head(h), owed))
      return total / jnp.maximum(jnp.sum(batch.mask), 1)

    value, grads = jax.value_and_grad(loss)(runs.params)
    updates, moments = self.optimizer.update(grads, runs.moments, runs.params)
    params = jax.tree.map(lambda p, u: p - rate * u, runs.params, updates)
    return Runs(params, moments), value

  def _due(self, h: jax.Array, batch: Batch) -> tuple[jax.Array, Batch]:
    """Features and batch at the first `due` places that count: a head of many ids costs more than
    the rest of a small model."""
    if self.due is None:
      return h, batch
    _, at = jax.lax.top_k(batch.mask.astype(jnp.int32), self.due)
    take = lambda a: jnp.take_along_axis(a, at.reshape(at.shape + (1,) * (a.ndim - 2)), axis=1)  # noqa: E731
    names = ("inputs", "targets", "mask")
    return take(h), dataclasses.replace(batch, **{n: take(getattr(batch, n)) for n in names})


def segmented(a, size: int):
  """The length that is a multiple of `size`."""
  return -(-a // size) * size


@functools.lru_cache(maxsize=4)
def make_runner(ports: Ports, *, segment: int, length: int):
  """The function that runs S models over examples, a segment of C tokens a call, state carried.

  Args:
    segment: C.   length: tokens that there is room for, a multiple of C.

  Returns: a jitted `run(params, rests, batch, count, forget) -> (predicted, nats)`: `batch` is
    padded to `length`, its first `count` segments are run, with `forget` each from a fresh state;
    `predicted [S, B, length]` (of bits `[..., outputs]`), `nats [S, B]` a sequence.
  """

  def one(params, rest, batch: Batch, count, forget):
    model = room(join(params, rest), length)
    rows = batch.inputs.shape[0]
    first = model.init_state(rows)
    cut = lambda a, start: jax.lax.dynamic_slice_in_dim(a, start, segment, axis=1)  # noqa: E731

    def step(i, carry):
      state, predicted, total = carry
      state = jax.tree.map(lambda a, b: jnp.where(forget, a, b), first, state)
      part = dataclasses.replace(
        batch, **{n: cut(getattr(batch, n), i * segment) for n in ("inputs", "targets", "mask")}
      )
      logits, state = model(part.inputs, state)
      put = guessed(ports, logits)
      predicted = jax.lax.dynamic_update_slice_in_dim(predicted, put, i * segment, axis=1)
      return state, predicted, total + jnp.sum(nats(ports, logits, part), axis=1)

    shape = (rows, length) if ports.classes else (rows, length, ports.outputs)
    predicted = jnp.zeros(shape, jnp.int32 if ports.classes else bool)
    start = first, predicted, jnp.zeros(rows)
    return jax.lax.fori_loop(0, count, step, start)[1:]

  return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None, None)))
