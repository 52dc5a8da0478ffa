"""What a work directory holds, finished or not, whole or not."""

import dataclasses
import json
import pathlib
from typing import Any

from experiments.metrics import read, read_samples


@dataclasses.dataclass
class Saved:
  """One checkpoint: its step, bytes on disk, metric (None: unknown), seconds since 1970."""

  step: int
  size: int
  metric: float | None
  time: float


@dataclasses.dataclass
class Model:
  """One model of a run: rows of metrics, samples of text, checkpoints."""

  name: str
  rows: list[dict[str, float]]
  samples: list[dict[str, Any]]
  checkpoints: list[Saved]

  def column(self, name: str) -> list[float]:
    """The values of one metric, in order."""
    return [row[name] for row in self.rows if name in row]

  @property
  def step(self) -> int:
    """The last step that was recorded."""
    return int(max((row["step"] for row in self.rows), default=0))


@dataclasses.dataclass
class Run:
  """A work directory. What could not be read is in `notes`."""

  workdir: pathlib.Path
  config: dict
  environment: dict
  models: list[Model]
  report: str
  pictures: dict[str, bytes]
  notes: list[str]


def collect(workdir: pathlib.Path) -> Run:
  """Reads a work directory; pieces that are missing or damaged become notes."""
  notes: list[str] = []
  config, environment = (_json(workdir / f"{n}.json", notes) for n in ("config", "environment"))
  folders = (
    [p for p in workdir.iterdir() if p.is_dir() and _is_model(p)] if workdir.exists() else []
  )
  models = [_model(folder) for folder in sorted(folders, key=_begun)]
  if not models:
    notes.append("no model has written anything yet")
  report = workdir / "report.md"
  pictures = {path.name: path.read_bytes() for path in sorted(workdir.glob("*.png"))}
  text = report.read_text(errors="replace") if report.exists() else ""
  return Run(workdir, config, environment, models, text, pictures, notes)


def _json(path: pathlib.Path, notes: list[str]) -> dict:
  try:
    found = json.loads(path.read_text())
    if isinstance(found, dict):
      return found
    notes.append(f"{path.name} is no dictionary")
  except FileNotFoundError:
    notes.append(f"there is no {path.name}")
  except ValueError as error:
    notes.append(f"{path.name} cannot be read: {error}")
  return {}


def _is_model(folder: pathlib.Path) -> bool:
  return (folder / "metrics.csv").exists() or (folder / "checkpoints").is_dir()


def _begun(folder: pathlib.Path) -> tuple[int, str]:
  """When its training began, by its first TensorBoard file; then by name."""
  times = [p.name.split(".")[3] for p in folder.glob("events.out.tfevents.*.*")]
  return min((int(time) for time in times if time.isdigit()), default=2**62), folder.name


def _model(folder: pathlib.Path) -> Model:
  saved = []
  for path in (folder / "checkpoints").glob("*"):
    if path.name.isdigit():
      size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
      saved.append(Saved(int(path.name), size, _metric(path), path.stat().st_mtime))
  rows, samples = read(folder / "metrics.csv"), read_samples(folder / "samples.jsonl")
  return Model(folder.name, rows, samples, sorted(saved, key=lambda one: one.step))


def _metric(checkpoint: pathlib.Path) -> float | None:
  try:
    info = json.loads((checkpoint / "info" / "metadata").read_text())
    metric = json.loads(info["json"])["metric"]
    return None if metric is None else float(metric)
  except (OSError, ValueError, KeyError, TypeError):
    return None
