"""Metrics of a run as CSV and TensorBoard events; rows written after the checkpoint that a run
resumes from are dropped."""

import csv
import os
import pathlib


class MetricsWriter:
  """Writes rows of numbers to `<folder>/metrics.csv` and to TensorBoard events beside it.

  Args:
    folder: where to write; made if needed.
    start: rows of later steps, left by a run that was killed, are removed.
  """

  def __init__(self, folder: pathlib.Path, start: int = 0):
    from experiments.events import Events

    folder.mkdir(parents=True, exist_ok=True)
    self.path = folder / "metrics.csv"
    self.rows = [row for row in read(self.path) if row["step"] <= start]
    self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
    self._rewrite()
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

  def close(self) -> None:
    """Flushes the events."""
    self.events.close()

  def _rewrite(self) -> None:
    partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
    with partial.open("w", newline="") as file:
      writer = csv.DictWriter(file, self.columns, restval="")
      writer.writeheader()
      writer.writerows(self.rows)
    os.replace(partial, self.path)


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
