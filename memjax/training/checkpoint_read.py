"""One checkpoint read back: verified first, then onto the host, or in pieces onto a mesh.

The processes of a job read together, each the pieces of its own devices; each verifies a part of
the files, and what one of them finds wrong is wrong for all.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from memjax.training import checkpoint_files, checkpoint_guard, processes
from memjax.training.checkpoint_arrays import check_array, is_cut


class Damaged(Exception):
  """One checkpoint does not hold what was saved."""


def read_info(reader, folder, step: int) -> dict:
  """The JSON part of the checkpoint in `folder`: `step`, `metric`, `extra`, `names` of the arrays.

  Args:
    reader: an Orbax checkpointer of composites.

  Raises:
    Damaged: it cannot be read, or is not what `Checkpoints.save` writes.
  """
  import orbax.checkpoint as ocp

  verify(folder, "info")
  item = _read(reader, folder, "info", ocp.args.JsonRestore())
  try:
    info = json.loads(item["json"])
    if info["step"] != step or not isinstance(info["extra"], dict):
      raise ValueError(f"it is of step {info['step']!r}")
    metric = None if info["metric"] is None else float(info["metric"])
    return {**info, "metric": metric, "names": list(map(str, info["names"]))}
  except (TypeError, KeyError, ValueError, RecursionError) as error:
    raise Damaged(f"info is not what memjax writes ({error!r})") from error


def read_arrays(reader, folder, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict:
  """The arrays `wanted`, as numpy arrays; those that are to be cut over a mesh as arrays on it, of
  which no process reads more than its devices' pieces.

  Raises:
    Damaged: they cannot be read.   ValueError: a shape or dtype is another.
  """
  import orbax.checkpoint as ocp

  full = {name: a for name, a in wanted.items() if a.size}  # Orbax takes no empty arrays
  there = describe(folder)
  for name, a in full.items():  # before anything is read: a forged shape may exceed the memory
    if name not in there:
      raise Damaged(f"{name} is not in it, though its list of names holds it")
    check_array(name, there[name], a, step)
  host = ocp.RestoreArgs(restore_type=np.ndarray)
  kinds = {
    name: ocp.ArrayRestoreArgs(sharding=a.sharding) if is_cut(a.sharding) else host
    for name, a in full.items()
  }
  request = ocp.args.PyTreeRestore(dict.fromkeys(full, 0), restore_args=kinds, partial_restore=True)
  arrays = _read(reader, folder, "arrays", request)
  arrays = {
    name: a if is_cut(wanted[name].sharding) else np.asarray(a) for name, a in arrays.items()
  }
  for name, a in wanted.items():
    check_array(name, arrays.setdefault(name, np.zeros(a.shape, a.dtype)), a, step)
  return arrays


def describe(folder, *, verified: bool = False) -> dict[str, Any]:
  """Metadata of the arrays of a checkpoint (`shape`, `dtype`) by name; no array is read, but to
  compare the checksums of their files, unless they are `verified`.

  Raises:
    Damaged: it cannot be read, or is not what `Checkpoints.save` writes.
  """
  if not verified:
    verify(folder, "arrays")
  return _agreed(lambda: checkpoint_guard.described(folder / "arrays"))


def verify(folder, item: str) -> None:
  """Raises Damaged unless the files of a part of the checkpoint are what was written."""
  part = jax.process_index(), jax.process_count()
  _agree(checkpoint_files.flaw(folder, item, part))


def _read(reader, folder, item: str, request) -> Any:
  import orbax.checkpoint as ocp

  args = ocp.args.Composite(**{item: request})
  return _agreed(lambda: reader.restore(folder, args=args)[item])


def _agreed(read: Callable[[], Any]) -> Any:
  """What `read()` returns; Damaged on all processes if it raises on one of them."""
  problem: Exception | None = None
  value = None
  try:
    value = read()
  except MemoryError:
    raise
  except Exception as error:  # Orbax and TensorStore each raise their own
    problem = error
  _agree(problem and f"{type(problem).__name__}: {first_line(problem)}", problem)
  return value


def _agree(problem: str | None, cause: Exception | None = None) -> None:
  found = [told for told in processes.from_all(problem) if told]
  if found:
    raise Damaged(found[0]) from cause


def first_line(error: BaseException) -> str:
  """Of an error's message."""
  return (str(error).strip() or "no message").splitlines()[0][:200]
