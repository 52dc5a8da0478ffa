"""Checkpoints on Orbax: written in the background, atomic, verified when they are read.

A checkpoint is a directory named by its step. It holds a flat dictionary of arrays (layers by
depth, random keys as their data), a JSON file with the step, the metric, the arrays' names and what
the caller adds, and a CRC-32 of every file. Orbax renames the directory into place when all of it
is written, so a kill leaves the old ones.
"""

import contextlib
import dataclasses
import json
import math
import time
import warnings
from typing import Any

import jax

from memjax.core import checks
from memjax.training import checkpoint_files, processes
from memjax.training.checkpoint_arrays import check_names, expected, from_host, to_host
from memjax.training.checkpoint_read import Damaged, first_line, read_arrays, read_info

_NO_LIMIT = 2_000_000_000  # seconds: Orbax reads the wall clock, and a save survives its jumps


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read; the message says what is left."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `Checkpoints.restore` found.

  Attributes:
    step: the checkpoint's step.
    tree: the template's structure with the saved arrays.
    extra: the saved JSON values.
  """

  step: int
  tree: Any
  extra: dict


class Checkpoints:
  """The checkpoints of one directory. A context manager: leaving it waits for the last save.

  One job may write (all its processes make the same calls); any number of processes may read with
  `read_only=True` meanwhile.

  Args:
    directory: made when it is missing.
    keep: how many of the newest are kept; the best one by its metric is kept besides.
    best_mode: "min" or "max": which metric is best.
    read_only: changes nothing on disk; leaves the traces of killed saves.

  Raises:
    FileNotFoundError: read_only, and there is no directory.
  """

  def __init__(self, directory, *, keep: int = 3, best_mode: str = "min", read_only: bool = False):
    import orbax.checkpoint as ocp  # takes a third of a second: on use
    from etils import epath

    checks.positive(keep=keep)
    checks.one_of("best_mode", best_mode, ("min", "max"))
    self.directory = epath.Path(directory).expanduser().absolute()
    self.keep, self.read_only, self._sign = keep, read_only, 1 if best_mode == "min" else -1
    self._ocp = ocp
    # Made asynchronously, directories on a full disk raise only after a timeout.
    options = ocp.options.AsyncOptions(
      create_directories_asynchronously=False,
      post_finalization_callback=self._seal,
      timeout_secs=_NO_LIMIT,
    )
    self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
    self._pending: tuple[int, float | None, int] | None = None  # step, metric, bytes
    self._failed: tuple[int | None, float | None, int] = None, None, 0
    self._damaged: set[int] = set()
    if read_only and not self.directory.exists():
      raise FileNotFoundError(f"there are no checkpoints: {self.directory} does not exist")
    if not read_only and jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      checkpoint_files.sweep(self.directory)
    self._metrics = {step: self._metric(step) for step in self._listed()}

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    try:
      self.close()
    except CheckpointError:
      if error is None:  # else the first error is the one to show
        raise

  @property
  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first, without those found damaged."""
    return sorted(set(self._metrics) - self._damaged)

  @property
  def best_step(self) -> int | None:
    """The complete checkpoint with the best metric; None when none has a metric."""
    metrics = ((self._metrics[step], step) for step in self.steps)
    known = [(self._sign * m, step) for m, step in metrics if m is not None and math.isfinite(m)]
    return min(known)[1] if known else None

  def save(self, step: int, tree, extra: dict | None = None, metric: float | None = None) -> float:
    """Copies everything to the host, starts to write it in the background, and returns.

    After that the arrays may be donated. Waits for the save before, if it is still being written.

    Args:
      step: names the checkpoint.
      tree: any pytree of arrays and typed random keys.
      extra: JSON values saved beside it: the position in the data, counts.
      metric: decides which checkpoint is the best.

    Returns:
      Seconds that the call took.

    Raises:
      CheckpointError: this save or the one before could not be written, because the disk is full
        or otherwise; the checkpoints before are intact.
      FileExistsError: there is a checkpoint of this step.
      TypeError: `extra` is not JSON.
    """
    start = time.perf_counter()
    if self.read_only:
      raise ValueError(f"the checkpoints in {self.directory} were opened with read_only=True")
    self.wait()
    self._set_aside()
    if step in self._metrics:
      raise FileExistsError(f"there is a checkpoint of step {step} in {self.directory}")
    arrays = to_host(tree)
    info = {"step": step, "metric": metric, "extra": extra or {}, "names": list(arrays)}
    self._pending = step, metric, sum(a.nbytes for a in arrays.values())
    args = self._ocp.args
    items = {
      "arrays": args.PyTreeSave({name: a for name, a in arrays.items() if a.size}),
      "info": args.JsonSave({"json": json.dumps(info)}),  # a text: Orbax reads numbers its own way
    }
    try:
      self._writer.save(self.directory / str(step), args=args.Composite(**items))
    except Exception as error:
      raise self._failure(error) from error
    return time.perf_counter() - start

  def check(self) -> None:
    """Raises CheckpointError if the save in the background has failed; does not wait for it."""
    try:
      self._writer.check_for_errors()
    except Exception as error:
      raise self._failure(error) from error

  def wait(self) -> None:
    """Waits until the last save is on disk, then deletes what need not be kept.

    Raises:
      CheckpointError: it could not be written.
    """
    if self._pending is None:
      return
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      raise self._failure(error) from error
    step, metric, _ = self._pending
    self._pending, self._metrics[step] = None, metric
    for old in set(self.steps[: -self.keep]) - {self.best_step}:
      self._delete(old)

  def close(self) -> None:
    """Waits for the last save and ends the background threads."""
    try:
      self.wait()
    finally:
      try:
        self._writer.close()
      except Exception as error:  # what the writers of other arrays met
        raise self._failure(error) from error

  def restore(self, template, step: int | None = None, *, partial: bool = False) -> Restored | None:
    """The newest checkpoint that is whole, or the one of `step`.

    One that cannot be read, or does not hold what was saved, is passed over with a RuntimeWarning
    that names it; the next `save` sets it aside as `damaged-STEP`.

    Args:
      template: arrays or `jax.ShapeDtypeStruct`s that give structure, shapes, dtypes and placement.
      step: one certain step.
      partial: the template may be a part of what was saved, such as
        `{"params": ..., "rest": ...}` of a train state.

    Returns:
      None if there is no checkpoint at all (and no step was asked for).

    Raises:
      CheckpointError: all of them (or that of `step`) are damaged or missing.
      ValueError: names, shapes or dtypes are not the template's: it is of another model.
    """
    self.wait()
    candidates = sorted(self._listed(), reverse=True) if step is None else [step]
    problems = []
    for candidate in candidates:
      try:
        restored = self._load(candidate, template, partial)
      except Damaged as problem:
        problems.append(f"step {candidate}: {problem}")
        self._damaged.add(candidate)
        continue
      if problems:
        warnings.warn(
          f"damaged checkpoints in {self.directory} ({'; '.join(problems)}); "
          f"the one of step {candidate} is used instead",
          RuntimeWarning,
          stacklevel=2,
        )
      return restored
    if problems:
      raise CheckpointError(
        f"no checkpoint in {self.directory} can be read ({'; '.join(problems)}); "
        "to start anew, delete the directory"
      )
    return None

  def _load(self, step: int, template, partial: bool) -> Restored:
    info, wanted = self.info(step), expected(template)
    check_names(wanted, info["names"], partial, step)
    arrays = read_arrays(self._writer, self.directory / str(step), step, wanted)
    return Restored(step, from_host(template, arrays), info["extra"])

  def info(self, step: int) -> dict:
    """The JSON part of a checkpoint: `step`, `metric`, `extra`, `names` of the arrays.

    Raises:
      Damaged: it cannot be read, or is not what `save` writes.
    """
    return read_info(self._writer, self.directory / str(step), step)

  def _metric(self, step: int) -> float | None:
    try:
      return self.info(step)["metric"]
    except Damaged:
      return None  # restore will say so

  def _listed(self) -> list[int]:
    """What process 0 sees, for all: a network's file system may show others less, or later."""
    found = None
    if jax.process_index() == 0:
      names = (path.name for path in self.directory.iterdir())
      found = [int(name) for name in names if name.isascii() and name.isdigit()]
    return processes.from_first(found)

  def _seal(self):
    """Runs in the background when all files are written, before the directory gets its name."""
    if self._pending is not None:
      step = str(self._pending[0])
      for path in self.directory.iterdir():
        if path.name == step or path.name.startswith(step + checkpoint_files.TEMPORARY):
          checkpoint_files.seal(path)

  def _set_aside(self):
    """Makes room for new checkpoints of damaged steps; a better tool may still read the old."""
    for step in self._damaged & set(self._metrics):
      target = self.directory / f"damaged-{step}"
      if jax.process_index() == 0:
        if target.exists():
          target.rmtree()
        (self.directory / str(step)).rename(target)
      del self._metrics[step]
    self._damaged.clear()

  def _delete(self, step: int):
    del self._metrics[step]
    if jax.process_index() == 0:  # renamed first: a kill leaves no half under a step's name
      path = self.directory / f"{step}{checkpoint_files.DELETING}"
      with contextlib.suppress(FileNotFoundError):  # the user was faster
        (self.directory / str(step)).rename(path)
        path.rmtree()

  def _failure(self, error: Exception) -> CheckpointError:
    step, _, size = self._failed = self._pending or self._failed
    self._pending = None
    if jax.process_index() == 0:
      checkpoint_files.sweep(self.directory)
    left = f"that of step {self.steps[-1]} is intact" if self.steps else "there is no earlier one"
    text = f"the checkpoint of step {step} could not be written to {self.directory}"
    if checkpoint_files.is_full(error):
      return CheckpointError(
        f"the disk is full: {text} (up to {size / 1e6:.1f} MB); {left}. "
        "Free some space and start the same command again"
      )
    return CheckpointError(f"{text} ({type(error).__name__}: {first_line(error)}); {left}")
