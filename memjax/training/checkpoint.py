"""Checkpoints on Orbax: written in the background, atomic, verified when read; the last ones and the best one are kept.

A checkpoint is a directory named by its step. It holds a flat dictionary of arrays made by `core.module.flatten` (stacked
layers by depth, random keys as their data) and one JSON text with the step, the metric, what the caller adds, and a CRC-32
of every array and of itself. Orbax renames the directory into place when all is written, so a kill leaves the old ones.
"""

import concurrent.futures
import dataclasses
import errno
import json
import math
import time
import warnings
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.core.module import flatten, unflatten

_PARTIAL = (".orbax-checkpoint-tmp", ".deleting")  # what a kill may leave behind
_FULL = ("no space left", "disk quota exceeded", "resource_exhausted")


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read; the message says which and what is left."""


class _Damaged(Exception):
  """One checkpoint does not hold what was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `Checkpoints.restore` found.

  Attributes:
    step: the checkpoint's step.   tree: the template's structure with the saved arrays.   extra: the saved JSON values.
  """

  step: int
  tree: Any
  extra: dict


class Checkpoints:
  """The checkpoints of one directory. A context manager: leaving it waits for the last save.

  One process (or one JAX job of several) may write; any number may read with `read_only=True` while it does.

  Args:
    directory: made when it is missing.
    keep: how many of the newest are kept; the best one by its metric is kept besides.
    best_mode: "min" or "max": which metric is best.
    read_only: changes nothing on disk, also no traces of killed saves.

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
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
    self._pending: tuple[int, float | None, int] | None = None  # step, metric, bytes
    self._damaged: set[int] = set()
    if read_only and not self.directory.exists():
      raise FileNotFoundError(
        f"there is no directory {self.directory}, so there are no checkpoints in it"
      )
    if not read_only and jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      self._sweep()
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
    """Steps of the complete checkpoints, oldest first (those being written and those found damaged are not among them)."""
    return sorted(set(self._metrics) - self._damaged)

  @property
  def best_step(self) -> int | None:
    """The step with the best metric among the complete checkpoints; None when none has one."""
    known = {step: self._metrics[step] for step in self.steps}
    finite = [
      step for step, metric in known.items() if metric is not None and math.isfinite(metric)
    ]
    return min(finite, key=lambda step: self._sign * known[step], default=None)

  def save(self, step: int, tree, extra: dict | None = None, metric: float | None = None) -> float:
    """Starts to save; returns once everything was copied to the host, and writes in the background.

    Waits for the save before, if that is still being written, and raises its error. Then the arrays may be donated.

    Args:
      step: names the checkpoint.
      tree: any pytree of arrays and typed keys.
      extra: JSON values saved beside it: the position in the data, counts.
      metric: decides which checkpoint is the best.

    Returns:
      Seconds that the call took.

    Raises:
      CheckpointError: the disk is full or cannot be written; the checkpoints before are intact.
      FileExistsError: there is a checkpoint of this step.   TypeError: `extra` is not JSON.
    """
    start = time.perf_counter()
    if self.read_only:
      raise ValueError(f"the checkpoints in {self.directory} were opened with read_only=True")
    self.wait()
    self._set_aside()
    if step in self._metrics:
      raise FileExistsError(f"there is a checkpoint of step {step} in {self.directory}")
    arrays, checksums = _to_host(tree)
    body = json.dumps(
      {"step": step, "metric": metric, "extra": extra or {}, "checksums": checksums}
    )
    self._pending = step, metric, sum(a.nbytes for a in arrays.values())
    args = self._ocp.args
    items = {
      "arrays": args.PyTreeSave(
        {name: a for name, a in arrays.items() if a.size}
      ),  # Orbax refuses empty arrays
      "info": args.JsonSave({"body": body, "crc32": zlib.crc32(body.encode())}),
    }
    try:
      self._writer.save(self.directory / str(step), args=args.Composite(**items))
    except Exception as error:
      raise self._failure(error) from error
    return time.perf_counter() - start

  def check(self) -> None:
    """Raises CheckpointError if the save in the background has failed; does not wait."""
    try:
      self._writer.check_for_errors()
    except Exception as error:
      raise self._failure(error) from error

  def wait(self) -> None:
    """Waits until the last save is on disk, then deletes what need not be kept. Raises CheckpointError if it failed."""
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
      self._writer.close()

  def restore(self, template, step: int | None = None, *, partial: bool = False) -> Restored | None:
    """The newest checkpoint that is whole, or the one of `step`.

    A checkpoint that cannot be read, or whose content is not what was saved, is passed over with a RuntimeWarning that names it.

    Args:
      template: pytree (arrays or `jax.ShapeDtypeStruct`s) that gives structure, shapes, dtypes and shardings.
      step: one certain step.
      partial: the template may be a part of what was saved: `{"params": ..., "rest": ...}` of a train state.

    Returns:
      None if there is no checkpoint at all (and no step was asked for).

    Raises:
      CheckpointError: all of them (or that of `step`) are damaged or missing.
      ValueError: what was saved has other names, shapes or dtypes than the template: it is of another model.
    """
    self.wait()
    candidates = sorted(self._listed(), reverse=True) if step is None else [step]
    problems = []
    for candidate in candidates:
      try:
        restored = self._load(candidate, template, partial)
      except _Damaged as problem:
        problems.append(f"step {candidate}: {problem}")
        self._damaged.add(candidate)
        continue
      if problems:
        warnings.warn(
          f"damaged checkpoints in {self.directory} ({'; '.join(problems)}); the one of step {candidate} is used instead",
          RuntimeWarning, stacklevel=2,
        )  # fmt: skip
      return restored
    if problems:
      raise CheckpointError(
        f"no checkpoint in {self.directory} can be read ({'; '.join(problems)}); to start anew, delete the directory"
      )
    return None

  def _load(self, step: int, template, partial: bool) -> Restored:
    info = self._info(step)
    bare = jax.tree.map(_without_key, template)
    wanted = jax.eval_shape(flatten, bare)
    _same_names(wanted, info["checksums"], partial, self.directory / str(step))
    arrays = self._arrays(step, [name for name, a in wanted.items() if a.size])
    for name, a in wanted.items():
      got = arrays.setdefault(name, np.zeros(a.shape, a.dtype))
      if (got.shape, got.dtype) != (a.shape, a.dtype):
        raise ValueError(
          f"{name} in the checkpoint of step {step} is {got.dtype}{list(got.shape)}, the model's is "
          f"{a.dtype}{list(a.shape)}: the checkpoint is of another model"
        )
      if info["checksums"][name] not in (None, _crc32(got)):
        raise _Damaged(f"the content of {name} is not what was saved")
    tree = jax.tree.map(_place, template, unflatten(bare, arrays))
    return Restored(step, tree, info["extra"])

  def _arrays(self, step: int, names: list[str]) -> dict[str, np.ndarray]:
    args, kind = self._ocp.args, self._ocp.RestoreArgs(restore_type=np.ndarray)
    request = args.PyTreeRestore(
      dict.fromkeys(names, 0), restore_args=dict.fromkeys(names, kind), partial_restore=True
    )
    try:
      read = self._writer.restore(self.directory / str(step), args=args.Composite(arrays=request))
    except MemoryError:
      raise
    except Exception as error:
      raise _Damaged(f"{type(error).__name__}: {_first_line(error)}") from error
    return {name: np.asarray(a) for name, a in read["arrays"].items()}

  def _info(self, step: int) -> dict:
    args = self._ocp.args
    try:
      read = self._writer.restore(
        self.directory / str(step), args=args.Composite(info=args.JsonRestore())
      )["info"]
      if zlib.crc32(read["body"].encode()) != read["crc32"]:
        raise _Damaged("the content of its JSON file is not what was saved")
      return json.loads(read["body"])
    except _Damaged:
      raise
    except Exception as error:
      raise _Damaged(f"{type(error).__name__}: {_first_line(error)}") from error

  def _metric(self, step: int) -> float | None:
    try:
      return self._info(step)["metric"]
    except _Damaged:
      return None  # restore will say so

  def _listed(self) -> list[int]:
    return [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]

  def _sweep(self):
    for path in self.directory.iterdir():
      if any(mark in path.name for mark in _PARTIAL):
        path.rmtree()

  def _set_aside(self):
    """Damaged checkpoints make room for new ones of their steps; nobody deletes what a better tool might still read."""
    for step in self._damaged & set(self._metrics):
      target = self.directory / f"damaged-{step}"
      if jax.process_index() == 0:
        if target.exists():
          target.rmtree()
        (self.directory / str(step)).rename(target)
      del self._metrics[step]

  def _delete(self, step: int):
    del self._metrics[step]
    if (
      jax.process_index() == 0
    ):  # renamed first: a kill must not leave half a checkpoint under a step's name
      (self.directory / str(step)).rename(self.directory / f"{step}.deleting").rmtree()

  def _failure(self, error: Exception) -> CheckpointError:
    step, _, size = self._pending or (None, None, 0)
    self._pending = None
    if jax.process_index() == 0:
      self._sweep()
    left = (
      f"the checkpoint of step {self.steps[-1]} is intact"
      if self.steps
      else "there is no earlier checkpoint"
    )
    text = f"checkpoint of step {step} could not be written to {self.directory}"
    if _is_full(error):
      return CheckpointError(
        f"the disk is full: {text} (up to {size / 1e6:.1f} MB are needed); {left}. Free some space and start the same command again"
      )
    return CheckpointError(f"{text} ({type(error).__name__}: {_first_line(error)}); {left}")


def _is_full(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return True
    if any(sign in str(error).lower() for sign in _FULL):
      return True
    error = error.__cause__
  return False


def _first_line(error: Exception) -> str:
  return (str(error).strip() or "no message").splitlines()[0][:200]


def _is_key(a) -> bool:
  return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def _without_key(a):
  a = jax.eval_shape(jax.random.key_data, a) if _is_key(a) else a
  return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _to_host(tree) -> tuple[dict[str, Any], dict[str, int | None]]:
  """Flat dict of copies on the host, and their checksums.

  An array that is spread over several processes stays as it is: Orbax writes its shards, and has no checksum here.
  """

  def copy(a):
    a = jax.random.key_data(a) if _is_key(a) else a
    whole = not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated
    return np.array(a) if whole else a  # a copy: on the CPU, a view would be donated with the array

  arrays = flatten(jax.tree.map(copy, tree))
  with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets other threads run
    return arrays, dict(zip(arrays, pool.map(_crc32, arrays.values()), strict=True))


def _crc32(a) -> int | None:
  return zlib.crc32(np.ascontiguousarray(a).view(np.uint8)) if isinstance(a, np.ndarray) else None


def _same_names(wanted, saved, partial: bool, where) -> None:
  missing, extra = sorted(set(wanted) - set(saved)), sorted(set(saved) - set(wanted))
  if missing or (extra and not partial):
    raise ValueError(
      f"the checkpoint {where} is of another model or optimiser: it lacks {missing[:3] or 'nothing'} ({len(missing)}) and has "
      f"{[] if partial else extra[:3] or 'nothing'} ({0 if partial else len(extra)}) besides"
    )


def _place(leaf, a):
  """`a` where the template's leaf lies, or uncommitted on the default device if that one is not bound to a place."""
  bound = getattr(leaf, "committed", not isinstance(leaf, jax.Array))
  sharding = getattr(leaf, "sharding", None) if bound else None
  a = jnp.array(a) if sharding is None else jax.device_put(a, sharding)
  return jax.random.wrap_key_data(a, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else a
