"""Metrics of a run as CSV, TensorBoard events and, if asked for, Weights & Biases; samples of text
beside them. What was written after the checkpoint that a run resumes from is dropped."""

import csv
import hashlib
import importlib
import json
import os
import pathlib
from typing import Any

from ml_collections import config_dict

WATCHING = ("wandb", "profile")  # fields that may differ from run to run of one work directory


def add_fields(config: config_dict.ConfigDict) -> None:
  """Gives a recipe the fields of watching: `wandb` and `profile`."""
  config.wandb = config_dict.ConfigDict()
  config.wandb.project = ""  # Weights & Biases: the project to log to; empty: not at all
  config.wandb.name = ""  # of the run there; empty: the work directory's
  config.profile = config_dict.ConfigDict()
  config.profile.steps = ""  # "10:13" traces the steps 10 to 12 into WORKDIR/profile


class MetricsWriter:
  """Writes rows of numbers to `<folder>/metrics.csv` and to TensorBoard events beside it.

  Args:
    folder: where to write; made if needed.
    start: rows of later steps, left by a run that was killed, are removed.
    config: a recipe; with `config.wandb.project` the rows go to Weights & Biases too.

  Raises:
    ValueError: `config.wandb.project` is set, but the package is missing.
  """

  def __init__(self, folder: pathlib.Path, start: int = 0, config=None):
    from experiments.events import Events

    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / "metrics.csv"
    self.rows = [row for row in read(self.path) if row["step"] <= start]
    self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
    self._rewrite()
    self.wandb = start_wandb(config, folder)
    self.events = Events(folder, start)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds one row; a new name adds a column."""
    row = {"step": step, **{name: float(value) for name, value in values.items()}}
    self.rows.append(row)
    new = [name for name in row if name not in self.columns]
    if new:
      self.columns += new
      self._rewrite()
    else:
      with self.path.open("a", newline="") as file:
        csv.DictWriter(file, self.columns, restval="").writerow(row)
    for name, value in values.items():
      self.events.add_scalar(name, float(value), step)
    if self.wandb is not None:
      self.wandb.log(row)

  def close(self) -> None:
    """Flushes the events."""
    self.events.close()
    if self.wandb is not None:
      self.wandb.finish()

  def _rewrite(self) -> None:
    partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
    with partial.open("w", newline="") as file:
      writer = csv.DictWriter(file, self.columns, restval="")
      writer.writeheader()
      writer.writerows(self.rows)
    os.replace(partial, self.path)


class Samples:
  """Texts that a model wrote, one JSON object a line in `<folder>/samples.jsonl`.

  Args:
    folder: where to write; made if needed.
    start: samples of later steps are removed.
  """

  def __init__(self, folder: pathlib.Path, start: int = 0):
    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / "samples.jsonl"
    kept = [sample for sample in read_samples(self.path) if sample["step"] <= start]
    partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
    partial.write_text("".join(json.dumps(sample) + "\n" for sample in kept))
    os.replace(partial, self.path)

  def write(self, step: int, prompt: str, text: str) -> None:
    """Adds one; `text` is what follows the prompt."""
    with self.path.open("a") as file:
      file.write(json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n")


def import_wandb(config) -> Any:
  """The package, if the recipe wants it, else None.

  Raises:
    ValueError: it wants it, and it is not installed.
  """
  part = config.get("wandb") if config is not None else None
  if part is None or not part.project:
    return None
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise ValueError(
      f"config.wandb.project={part.project!r} needs the package wandb: pip install "
      "'memjax[wandb]', or leave the field empty"
    ) from error


def start_wandb(config, folder: pathlib.Path) -> Any:
  """The run of Weights & Biases of one model, or None where the recipe names no project.

  One model of a work directory is one run there, found again when the training goes on. Steps are
  an axis of our own, since W&B takes none that it has passed: after a resume some come twice.
  """
  wandb = import_wandb(config)
  if wandb is None:
    return None
  part = config.wandb
  workdir = folder.absolute().parent
  run = wandb.init(
    project=part.project,
    name=f"{part.name or workdir.name}/{folder.name}",
    group=part.name or workdir.name,
    id=hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16],
    resume="allow",
    dir=str(workdir),
    config=json.loads(config.to_json_best_effort()),
  )
  run.define_metric("step")
  run.define_metric("*", step_metric="step")
  return run


def read(path: pathlib.Path) -> list[dict[str, float]]:
  """The rows of a `metrics.csv`; empty cells are left out, and so is a last line that a kill cut
  short."""
  if not path.exists():
    return []
  rows = []
  with path.open(newline="") as file:
    for row in csv.DictReader(file):
      try:
        numbers = {name: float(value) for name, value in row.items() if value not in ("", None)}
        rows.append({**numbers, "step": int(numbers["step"])})
      except (KeyError, TypeError, ValueError):
        continue
  return rows


def read_samples(path: pathlib.Path) -> list[dict[str, Any]]:
  """The samples of a `samples.jsonl`, without a last line that a kill cut short."""
  samples = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      sample = json.loads(line)
      step, prompt, text = int(sample["step"]), str(sample["prompt"]), str(sample["text"])
    except (ValueError, KeyError, TypeError):
      continue
    samples.append({"step": step, "prompt": prompt, "text": text})
  return samples
