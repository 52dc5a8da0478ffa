"""The loop: steps, evaluations, checkpoints, and an end that loses nothing."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax

from memjax.training.checkpoint import CheckpointError, Checkpoints
from memjax.training.checkpoint_arrays import abstract
from memjax.training.signals import StopOnSignal
from memjax.training.step import TrainState
from memjax.training.watchdog import Watchdog


class TrainingDiverged(RuntimeError):
  """Too many steps in a row were not finite."""


@dataclasses.dataclass(frozen=True)
class FitResult:
  """How a call of `fit` ended.

  Attributes:
    state: the last state.   step: its step.
    best, best_step: the best evaluation and where it was; None without evaluations.
    seconds: training time of all runs together, without evaluations and saves.
    stopped: a signal ended the run before its end.
  """

  state: TrainState
  step: int
  best: float | None
  best_step: int | None
  seconds: float
  stopped: bool


class Batches(Protocol):
  """An iterator over batches that can tell and set its position."""

  def __next__(self) -> Any: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


def fit(
  state: TrainState, step_fn: Callable, batches: Batches, *, steps: int,
  evaluate: Callable | None = None, evaluate_every: int = 0, best_metric: str = "loss",
  until: Callable[[dict], bool] | None = None,
  checkpoints: Checkpoints | None = None, save_every: int = 0, max_bad_steps: int = 20,
  on_start: Callable | None = None, on_step: Callable | None = None,
  on_evaluation: Callable | None = None, on_checkpoint: Callable | None = None,
  extra: Callable[[], dict] = dict, place: Callable = jax.device_put,
  stop: StopOnSignal | None = None, watchdog: Watchdog | None = None,
  around_step: Callable | None = None,
) -> FitResult:  # fmt: skip
  """Trains up to step `steps`, from the newest checkpoint if there is one.

  A run that was killed and started again computes, bit for bit, what an uninterrupted one does:
  the checkpoint holds the whole state and the position in the data, and evaluation comes before
  saving.

  Args:
    state: as from `init_train_state`, donated. With a checkpoint it gives only the structure and
      the placement.
    step_fn: `(state, batch) -> (state, metrics)`; metrics hold `streak`, the bad steps in a row.
    batches: an endless iterator; without checkpoints it needs no `get_state` and `set_state`.
    steps: the last step.
    evaluate: `state -> {name: float}`, every `evaluate_every` steps and after the last one.
    best_metric: the entry of it whose lowest value is the best; a new best one is saved at once.
    until: from an evaluation's metrics to whether it is the last: the run then ends before `steps`,
      and ends at once when it is started again.
    checkpoints: where to save, every `save_every` steps, after the last one and at a signal.
    max_bad_steps: so many steps in a row that are not finite end the run.
    on_start: `(step, extra)`; step 0 and {} for a fresh run, else what `extra()` returned then.
    on_step: `(step, metrics)`, floats, while the device computes the next step already.
    on_evaluation: `(step, metrics, is_best)`. Both metrics have `seconds`, the training time of
      all runs so far, compilation included, evaluations and saves not.
    on_checkpoint: `(step, seconds)`, how long the save held up the training.
    extra: returns JSON values to save with each checkpoint.
    place: `batch -> batch` on the device.
    stop: entered by the caller already; None: SIGTERM is watched during the call.
    watchdog: entered by the caller already; it is told of each step, evaluation and save.
    around_step: `(step, step_fn, state, batch)`, called in place of `step_fn(state, batch)` and
      returning what that returns; such as a `Profile`.

  Raises:
    TrainingDiverged: see `max_bad_steps`.
    CheckpointError: a save failed, or no checkpoint can be read.
    RuntimeError: the batches ended before the last step.
    TypeError: the batches cannot tell their position.
  """
  if checkpoints is not None and not hasattr(batches, "get_state"):
    raise TypeError(
      f"{type(batches).__name__} has no get_state and set_state, so its position cannot be saved; "
      "give such an iterator, or checkpoints=None"
    )
  if evaluate_every < 0 or save_every < 0 or max_bad_steps < 1:
    raise ValueError(
      f"{evaluate_every=} and {save_every=} must be >= 0 (0: at the end only), "
      f"and {max_bad_steps=} >= 1"
    )
  run = _Run(
    state, batches, place, steps, evaluate, evaluate_every, best_metric, until, checkpoints,
    save_every, max_bad_steps, on_step or _quiet, on_evaluation or _quiet,
    on_checkpoint or _quiet, extra, watchdog or Watchdog(0), around_step,
  )  # fmt: skip
  with StopOnSignal() if stop is None else contextlib.nullcontext(stop) as stop:
    with run.watchdog.part():
      saved_extra = run.resume()
      (on_start or _quiet)(run.step, saved_extra)
      run.train(step_fn, stop)
  return FitResult(run.state, run.step, run.best, run.best_step, run.seconds, not run.ended)


def _quiet(*_):
  pass


@dataclasses.dataclass
class _Run:
  """The arguments of `fit`, and how far it is."""

  state: TrainState
  batches: Batches
  place: Callable
  steps: int
  evaluate: Callable | None
  evaluate_every: int
  best_metric: str
  until: Callable | None
  checkpoints: Checkpoints | None
  save_every: int
  max_bad_steps: int
  on_step: Callable
  on_evaluation: Callable
  on_checkpoint: Callable
  extra: Callable
  watchdog: Watchdog
  around_step: Callable | None = None
  step: int = 0
  position: Any = None  # in the data, after the batch of `step`; the iterator is one batch ahead
  saved: int = 0
  satisfied: bool = False
  best: float | None = None
  best_step: int | None = None
  seconds: float = 0.0
  clock: float = 0.0

  def resume(self) -> dict:
    self.watchdog.begin("the reading of the newest checkpoint")
    restored = None if self.checkpoints is None else self.restore(self.checkpoints)
    if restored is None:
      return {}
    self.state, self.step, self.saved = restored.tree, restored.step, restored.step
    progress = restored.extra
    try:
      self.best, self.best_step = progress["best"], progress["best_step"]
      self.seconds, self.satisfied = progress["seconds"], progress.get("satisfied", False)
      position, extra = progress["position"], progress["extra"]
    except KeyError as error:
      raise CheckpointError(
        f"the checkpoint of step {self.step} was not saved by fit: it holds no {error}"
      ) from None
    self.batches.set_state(position)
    return extra

  def restore(self, checkpoints: Checkpoints):
    """What the newest checkpoint holds, if there is one; the first state is then given up for it,
    before the other takes its place in memory."""
    if not checkpoints.steps:
      return checkpoints.restore(self.state)
    template = jax.tree.map(abstract, self.state)
    jax.tree.map(lambda a: a.delete() if isinstance(a, jax.Array) else None, self.state)
    return checkpoints.restore(template)

  @property
  def ended(self) -> bool:
    return self.satisfied or self.step >= self.steps

  def train(self, step_fn: Callable, stop: StopOnSignal):
    pending, self.clock = None, time.perf_counter()
    batch = self.fetch()
    while batch is not None and not (stop.agreed() or self.satisfied):
      arrays, self.position = batch
      self.watchdog.begin("step", self.step + 1)
      if self.around_step is None:
        self.state, metrics = step_fn(self.state, arrays)
      else:
        self.state, metrics = self.around_step(self.step + 1, step_fn, self.state, arrays)
      self.step += 1
      batch = self.fetch()  # this and the report of the step before, while the device computes
      self.report(pending)
      pending = self.step, metrics
      if self.due(self.evaluate_every) or self.due(self.save_every):
        self.report(pending)
        pending = None
        self.pause()
    self.report(pending)
    self.finish(stop)

  def fetch(self):
    """The next batch, on its way to the device, and the position after it; None at the end."""
    if self.ended:
      return None
    self.watchdog.begin("the reading of the batch of step", self.step + 1)
    try:
      batch = self.place(next(self.batches))
    except StopIteration:
      return None
    return batch, self.batches.get_state() if self.checkpoints is not None else None

  def due(self, every: int) -> bool:
    return self.step >= self.steps or (every > 0 and self.step % every == 0)

  def report(self, pending):
    if pending is None:
      return
    step, metrics = pending
    self.watchdog.begin("step", step)
    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self.tick()
    self.on_step(step, {**metrics, "seconds": self.seconds})
    if metrics.get("streak", 0) >= self.max_bad_steps:
      raise TrainingDiverged(
        f"the last {int(metrics['streak'])} steps, up to step {step}, had a loss or gradient that "
        "is not finite; they changed nothing. A lower learning rate or a tighter clip may help "
        f"(max_bad_steps={self.max_bad_steps})"
      )
    if self.checkpoints is not None:
      self.checkpoints.check()

  def tick(self):
    now = time.perf_counter()
    self.seconds, self.clock = self.seconds + now - self.clock, now

  def pause(self):
    """Evaluates and saves what is due, off the clock; in this order: the checkpoint knows of it."""
    metric = is_best = None
    if self.evaluate is not None and self.due(self.evaluate_every):
      self.watchdog.begin("the evaluation after step", self.step)
      metrics = self.evaluate(self.state)
      metric = float(metrics[self.best_metric])
      is_best = math.isfinite(metric) and (self.best is None or metric < self.best)
      if is_best:
        self.best, self.best_step = metric, self.step
      self.satisfied = self.until is not None and bool(self.until(metrics))
      self.on_evaluation(self.step, {**metrics, "seconds": self.seconds}, is_best)
    if is_best or self.due(self.save_every):
      self.save(metric)
    self.clock = time.perf_counter()

  def save(self, metric: float | None):
    if self.checkpoints is None:
      return
    progress = {
      "position": self.position,
      "best": self.best,
      "best_step": self.best_step,
      "seconds": self.seconds,
      "satisfied": self.satisfied,
      "extra": self.extra(),
    }
    self.watchdog.begin("the checkpoint of step", self.step)
    seconds = self.checkpoints.save(self.step, self.state, progress, metric)
    self.saved = self.step
    self.on_checkpoint(self.step, seconds)

  def finish(self, stop: StopOnSignal):
    if self.step > self.saved:
      self.save(None)
    if self.checkpoints is not None:
      self.watchdog.begin("the writing of the checkpoint of step", self.saved)
      self.checkpoints.wait()
    if not (self.ended or stop.requested):
      raise RuntimeError(f"the batches ended after {self.step} of {self.steps} steps")
