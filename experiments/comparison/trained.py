"""Training of a cell to its end, across interruptions: after the last whole block it goes on as if
nothing had happened."""

import dataclasses
import io
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.comparison import rows
from experiments.comparison.program import Runs, Trainer

SAVE_EVERY = 20.0  # seconds
NOTES = ("curve", "seconds", "processor", "timed", "spent")  # of `Trained`, besides its arrays


@dataclasses.dataclass
class Trained:
  """What a training came to.

  Attributes:
    runs: parameters and moments, leaves `[S, R, ...]`.   rests: what `split` left of the models.
    curve: a row for each block: steps made, loss and validation, both `[S, R]` lists.
    seconds, processor: of blocks, by the clock and of all cores, the first (with its compilation)
      left out.   timed: steps that these took.   spent: of all cores, all blocks of all processes.
  """

  runs: Runs
  rests: Any
  curve: list[dict]
  seconds: float = 0.0
  processor: float = 0.0
  timed: int = 0
  spent: float = 0.0

  @property
  def steps(self) -> int:
    return self.curve[-1]["step"] if self.curve else 0

  def best(self) -> int:
    """The learning rate of the best last validation, mean over seeds; of equals the one with the
    lowest loss."""
    score = np.mean(np.nan_to_num(self.curve[-1]["validation"]), axis=0)
    loss = np.mean(np.nan_to_num(self.curve[-1]["loss"], nan=np.inf), axis=0)
    return min(range(len(score)), key=lambda i: (-score[i], loss[i]))

  def enough(self, score: float) -> bool:
    """Whether all seeds of one learning rate have this on validation."""
    if not self.curve:
      return False
    return bool(np.any(np.min(np.asarray(self.curve[-1]["validation"]), axis=0) >= score))


def train(trainer: Trainer, path: pathlib.Path, tell=lambda trained: None) -> Trained:
  """Trains until `enough` or the last step; `path` holds what an interruption would lose."""
  runs, rests = trainer.start()
  trained, total = _load(path, runs, rests) or Trained(runs, rests, []), trainer.training.steps
  saved, first = time.monotonic(), True
  while trained.steps < total and not trained.enough(trainer.training.enough):
    count = min(trainer.training.block, total - trained.steps)
    begin = time.monotonic(), time.process_time()
    runs, loss, validation = trainer.block(trained.runs, rests, trained.steps, count)
    trained.runs = jax.block_until_ready(runs)
    trained.spent += time.process_time() - begin[1]
    if not first:
      trained.seconds += time.monotonic() - begin[0]
      trained.processor += time.process_time() - begin[1]
      trained.timed += count
    first = False
    row = {"step": trained.steps + count, "loss": loss.tolist(), "validation": validation.tolist()}
    trained.curve.append(row)
    tell(trained)
    if time.monotonic() - saved > SAVE_EVERY:
      _save(path, trained)
      saved = time.monotonic()
  _save(path, trained)
  return trained


def _save(path: pathlib.Path, trained: Trained) -> None:
  leaves: dict[str, Any] = {str(i): a for i, a in enumerate(jax.tree.leaves(trained.runs))}
  notes = {name: getattr(trained, name) for name in NOTES}
  data = io.BytesIO()
  np.savez(data, notes=np.asarray(json.dumps(notes)), **leaves)
  rows.put(path, data.getvalue())


def _load(path: pathlib.Path, runs: Runs, rests) -> Trained | None:
  """What a process before this one left, or None."""
  if not path.exists():
    return None
  with np.load(path) as held:
    notes = json.loads(str(held["notes"]))
    leaves = [jnp.asarray(held[str(i)]) for i in range(len(held.files) - 1)]
  runs = jax.tree.unflatten(jax.tree.structure(runs), leaves)
  return Trained(runs, rests, **notes)
