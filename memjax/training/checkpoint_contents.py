"""What a checkpoint holds, told without the model that it is of."""

import dataclasses

import jax
import numpy as np

from memjax.training.checkpoint import CheckpointError, Checkpoints
from memjax.training.checkpoint_files import NAME, size
from memjax.training.checkpoint_read import Damaged, describe
from memjax.training.export import Entry

PARAMETERS, REST, OPTIMIZER, MEMORY = "params/", "rest/arrays/", "opt_state/", "memory/"


@dataclasses.dataclass(frozen=True)
class Contents:
  """One checkpoint.

  Attributes:
    step: of the checkpoint.   metric: of its evaluation, or None.
    extra: the JSON values saved beside it: of `fit` the position in the data, seconds, the best.
    arrays: shapes and dtypes by name, in the order they were saved in: `params/...` are the trained
      parameters, `rest/arrays/...` the model's other arrays, `opt_state/...` the optimiser's,
      `memory/...` the memory state; the rest are counters and the random key.
    empty: names of arrays without an element, of which only the name was saved.
    disk_bytes: size of its files.
  """

  step: int
  metric: float | None
  extra: dict
  arrays: dict[str, jax.ShapeDtypeStruct]
  empty: tuple[str, ...]
  disk_bytes: int

  def group(self, prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays under `prefix`, by the rest of their names."""
    return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}


def contents(checkpoints: Checkpoints, step: int | None = None, *, verify: bool = True) -> Contents:
  """What the newest checkpoint, or that of `step`, holds; no array is read but to `verify`.

  Args:
    checkpoints: may be opened with `read_only=True`.
    verify: also compare every file with its checksum.

  Raises:
    CheckpointError: there is none, or it is damaged or was not written by memjax; the message says
      what is wrong, and which others there are.
  """
  found = saved_steps(checkpoints)
  if not found:
    raise CheckpointError(f"{checkpoints.directory} holds no checkpoint")
  step = found[-1] if step is None else step
  others = [other for other in found if other != step]
  hint = f"; others are of step {', '.join(map(str, others))}" if others else ""
  if step not in found:
    raise CheckpointError(f"{checkpoints.directory} holds no checkpoint of step {step}{hint}")
  folder = checkpoints.directory / str(step)
  if not (folder / NAME).exists():
    raise CheckpointError(
      f"{folder} was not written by memjax, or not to its end: it has no {NAME}{hint}"
    )
  try:
    info = checkpoints.info(step)
    arrays = describe(folder, verified=not verify).items()
    shapes = {name: jax.ShapeDtypeStruct(a.shape, np.dtype(a.dtype)) for name, a in arrays}
  except Exception as error:  # Orbax raises what it likes on metadata that it cannot read
    text = str(error) if isinstance(error, Damaged) else f"{type(error).__name__}: {error}"
    text = (text.splitlines() or [""])[0][:200]
    raise CheckpointError(f"{folder} is damaged: {text}{hint}") from error
  lost = [name for name in info["names"] if name not in shapes]
  names = [name for name in info["names"] if name in shapes]
  return Contents(
    info["step"], info["metric"], info["extra"], {name: shapes[name] for name in names},
    tuple(lost), size(folder),
  )  # fmt: skip


def saved_steps(checkpoints: Checkpoints) -> list[int]:
  """Steps of all folders that look like a checkpoint, damaged ones included, oldest first."""
  return sorted(int(path.name) for path in checkpoints.directory.iterdir() if path.name.isdigit())


def parameter_entries(checkpoints: Checkpoints, held: Contents) -> dict[str, Entry]:
  """The model's arrays, trained or not, for `export.save_entries`: read one after the other, and
  named as `core.flatten` names those of the model."""
  entries = {}
  for prefix in (PARAMETERS, REST):
    for name, array in held.group(prefix).items():
      read = _reader(checkpoints, held.step, prefix + name)
      entries[name] = Entry(tuple(array.shape), np.dtype(array.dtype), read)
  return entries


def _reader(checkpoints: Checkpoints, step: int, name: str):
  import orbax.checkpoint as ocp

  def read() -> np.ndarray:
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    request = ocp.args.PyTreeRestore({name: 0}, restore_args={name: kind}, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      folder = checkpoints.directory / str(step) / "arrays"
      return np.asarray(reader.restore(folder, args=request)[name], order="C")

  return read
