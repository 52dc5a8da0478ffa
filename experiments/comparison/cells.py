"""A cell from start to rows: train all learning rates and seeds, take the best by validation, test
its seeds, with and without what is carried."""

import functools
import pathlib
import statistics
import time

import jax
import numpy as np

from experiments.comparison import rows, tested, trained
from experiments.comparison.plan import Cell
from experiments.comparison.program import ENOUGH, Trainer, measured, segmented
from experiments.comparison.shell import sizes
from experiments.comparison.tasks import Setup
from experiments.comparison.tested import Result, Tester
from experiments.comparison.trained import Trained
from memjax.core import join
from memjax.tasks.scoring import bootstrap, wilson


def folder(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "cells"


def finished(cell: Cell, workdir: pathlib.Path) -> bool:
  return (folder(workdir) / f"{cell.name}.csv").exists()


def run(cell: Cell, workdir: pathlib.Path, tell=print) -> bool:
  """Runs a cell unless it is finished or another process has it; whether it is finished now."""
  place = folder(workdir)
  target, partial = place / f"{cell.name}.csv", place / f"{cell.name}.npz"
  with rows.claim(place / f"{cell.name}.lock") as mine:
    if not mine:
      return False
    if not target.exists():
      begin = time.monotonic()
      done = _train(cell, partial, tell)
      trained_at = time.process_time()
      found = Rows(cell, done).all(tell)
      found.append({"metric": "seconds_cell", "value": time.monotonic() - begin})
      spent = done.spent + time.process_time() - trained_at
      found.append({"metric": "cpu_seconds_cell", "value": spent})
      rows.write(target, [_complete(cell, row) for row in found])
      partial.unlink(missing_ok=True)
    return True


@functools.lru_cache(maxsize=2)
def trainer(cell: Cell) -> Trainer:
  """The training program of a cell, compiled once for its estimate and its run."""
  segment = segment_of(cell)
  length = max(tested.length_of(task) for task in cell.setup.train)
  return Trainer(
    cell.make, cell.ports, cell.setup.train, segmented(length, segment), cell.setup.metric,
    cell.training, cell.setup.due,
  )  # fmt: skip


def segment_of(cell: Cell) -> int:
  """Tokens of a call at tests: the size's, or the memory's own if that needs more."""
  model = jax.eval_shape(lambda: cell.make(jax.random.key(0)))
  return segmented(cell.size.segment, model.granularity)


def _train(cell: Cell, partial: pathlib.Path, tell) -> Trained:
  def progress(state: Trained):
    last = state.curve[-1]
    score = np.mean(np.nan_to_num(last["validation"]), axis=0).max()
    tell(f"{cell.setup.name} {cell.memory}: step {state.steps}, validation {score:.3f}")

  return trained.train(trainer(cell), partial, progress)


def _complete(cell: Cell, row: dict) -> dict:
  return {"task": cell.setup.name, "config": cell.config, "model": cell.memory, **row}


class Rows:
  """The rows of a trained cell."""

  def __init__(self, cell: Cell, done: Trained):
    self.cell, self.done, self.best = cell, done, done.best()
    self.segment = segment_of(cell)
    take = lambda a: np.asarray(a)[:, self.best]  # noqa: E731
    self.params = jax.tree.map(take, done.runs.params)
    self.rests, self.sizes = done.rests, sizes(jax.eval_shape(lambda: cell.make(jax.random.key(0))))
    one = lambda tree: jax.tree.map(lambda a: np.asarray(a)[0], tree)  # noqa: E731
    self.model = join(one(self.params), one(self.rests))
    batch = tested.examples(cell.setup.tests[0].task, cell.budget.examples)
    self.inputs = np.asarray(batch.inputs)
    first = np.resize(self.inputs[:1], (1, self.segment, *self.inputs.shape[2:]))
    self.leaves = tested.state_leaves(self.model, first, self.segment)
    room = [tested.state_bytes(self.model, self.leaves, self.segment * n) for n in (1, 2)]
    self.grows = room[0] != room[1]
    self._flops: dict[int, float] = {}

  def all(self, tell) -> list[dict]:
    return [*self._training(), *self._tests(tell), *self._streams(tell)]

  def _about(self, length: int) -> dict:
    """The columns that tell what was spent, at this length."""
    at = length if self.grows else self.segment * 4
    if at not in self._flops:
      self._flops[at] = tested.flops_per_token(self.model, self.inputs, segmented(at, self.segment))
    return {
      "lr": self.cell.training.rates[self.best],
      "length": length,
      "state_bytes": tested.state_bytes(self.model, self.leaves, segmented(length, self.segment)),
      "params_total": self.sizes["total"],
      "params_active": self.sizes["active"],
      "flops_tok": round(self._flops[at]),
      "tokens": self.done.steps * self.cell.training.batch * self.train_length,
    }

  @property
  def train_length(self) -> int:
    return max(tested.length_of(task) for task in self.cell.setup.train)

  def _training(self) -> list[dict]:
    training, about = self.cell.training, self._about(self.train_length)
    found = []
    for r, rate in enumerate(training.rates):
      for s, seed in enumerate(training.seeds):
        value = self.done.curve[-1]["validation"][s][r]
        row = {"seed": seed, "lr": rate, "metric": "validation", "value": value}
        found.append(about | row | {"n": training.validation})
    for s, seed in enumerate(training.seeds):
      per_step = training.batch * self.train_length
      for row in self.done.curve:
        for name in ("loss", "validation"):
          now = {"seed": seed, "tokens": row["step"] * per_step, "key": row["step"]}
          found.append(about | now | {"metric": f"curve_{name}", "value": row[name][s][self.best]})
      reached = [
        row["step"] for row in self.done.curve
        if row["validation"][s][self.best] >= ENOUGH
      ]  # fmt: skip
      value = reached[0] if reached else None
      found.append(about | {"seed": seed, "metric": "steps_to_threshold", "value": value})
    runs = len(training.rates) * len(training.seeds)
    spent = {"second": self.done.seconds, "cpu_second": self.done.processor}
    for unit, seconds in spent.items():
      if self.done.timed:
        rate = self.done.timed * training.batch * self.train_length * runs / seconds
        found.append(about | {"metric": f"train_tokens_per_{unit}", "value": rate})
    found.append(about | {"metric": "steps", "value": self.done.steps})
    found += [
      about | {"metric": f"params_{name}", "value": value} for name, value in self.sizes.items()
    ]
    return found

  def _tests(self, tell) -> list[dict]:
    tester = Tester(self.cell.setup, self.cell.ports, self.segment, self.cell.budget.examples)
    found = []
    tester(self.params, self.rests, self.cell.setup.tests[0])  # compiled before anything is timed
    for test in self.cell.setup.tests:
      for forget in (False, True):
        begin = time.monotonic()
        result = tester(self.params, self.rests, test, forget=forget)
        seconds = time.monotonic() - begin
        found += self._scores(result)
        if not forget:
          tokens = result.predicted.shape[0] * result.batch.mask.size
          row = {"metric": "test_tokens_per_second", "value": tokens / seconds}
          found.append(self._about(result.batch.mask.shape[1]) | _setting(test) | row)
      best = statistics.fmean(
        row["value"] for row in found
        if row.get("metric") == self.cell.setup.metric and row.get("setting") == test.value
        and row.get("varies") == test.varies and not row["control"]
      )  # fmt: skip
      tell(f"{self.cell.setup.name} {self.cell.memory}: {test.varies} {test.value}: {best:.3f}")
    return found

  def _scores(self, result: Result) -> list[dict]:
    found = []
    length = result.batch.mask.shape[1]
    about = self._about(length) | _setting(result.test) | {"control": result.control}
    for s, seed in enumerate(self.cell.training.seeds):
      for metric, values in result.scores.items():
        low, high = interval(values[s], metric)
        row = {"seed": seed, "metric": metric, "value": float(values[s].mean())}
        found.append(about | row | {"ci_lo": low, "ci_hi": high, "n": values.shape[1]})
      details = self.cell.setup.details
      if details is None or result.control:
        continue
      for (metric, key), (value, n) in details(
        result.test, result.predicted[s], result.batch
      ).items():
        row = {"seed": seed, "metric": metric, "key": key, "value": value, "n": n}
        found.append(about | row)
    return found

  def _streams(self, tell) -> list[dict]:
    setup, budget = self.cell.setup, self.cell.budget
    if not setup.streams or self.grows:
      return []
    found, score = [], setup.metric
    for length, success in tested.stream(
      setup, self.cell.ports, self.params, self.rests, self.segment, budget.walkers
    ):
      tell(f"{setup.name} {self.cell.memory}: stream of {length}: {success.mean():.3f}")
      about = self._about(length) | {"varies": "length", "setting": length, "control": ""}
      for s, seed in enumerate(self.cell.training.seeds):
        low, high = interval(success[s], score)
        row = {"seed": seed, "metric": score, "value": float(success[s].mean())}
        found.append(about | row | {"ci_lo": low, "ci_hi": high, "n": success.shape[1]})
    return found


def trained_up_to(setup: Setup, varies: str) -> float | None:
  """The largest value that is trained on of what varies, where the tests' own tasks tell."""
  name = {"length": "length", "pairs": "pairs", "updates": "updates"}.get(varies)
  if name is None or not all(hasattr(task, name) for task in setup.train):
    return None
  return max(getattr(task, name) for task in setup.train)


def _setting(test) -> dict:
  task = test.task
  names = ("pairs", "updates", "needles", "data")
  load = next((getattr(task, name) for name in names if hasattr(task, name)), None)
  return {"varies": test.varies, "setting": test.value, "load": load}


def interval(values: np.ndarray, metric: str) -> tuple[float, float]:
  """95 % of a mean over examples `[B]`."""
  if metric == "em":
    return wilson(int(values.sum()), len(values))
  return bootstrap(values, np.ones(len(values)), resamples=500)


def references(cell: Cell) -> list[dict]:
  """Rows of chance, floor and oracle of a cell's task: what any table needs beside the memories."""
  found = []
  for test in cell.setup.tests:
    task, batch = test.task, tested.examples(test.task, cell.budget.examples)
    length = batch.mask.shape[1]
    about = {"task": cell.setup.name, **_setting(test), "length": length, "n": len(batch.mask)}
    about |= {"metric": cell.setup.metric, "config": cell.config, "control": ""}
    about["state_bytes"] = None
    solved = task.solve(batch)
    score = float(measured(cell.ports, solved, batch, cell.setup.metric).mean())
    bits = task.state_bits / 8
    found += [
      about | {"model": "chance", "value": task.chance},
      about | {"model": "floor", "value": task.floor},
      about | {"model": "oracle", "value": score, "state_bytes": bits},
    ]
  return found
