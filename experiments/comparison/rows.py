"""Results as rows: one CSV file a cell, written whole or not at all, and claims on cells that end
with the process that holds them."""

import contextlib
import csv
import fcntl
import io
import os
import pathlib
from collections.abc import Iterator

COLUMNS = (
  "task", "config", "model", "control", "seed", "lr", "varies", "setting", "length", "load", "key",
  "state_bytes", "params_total", "params_active", "flops_tok", "tokens", "metric", "value",
  "ci_lo", "ci_hi", "n",
)  # fmt: skip
NUMBERS = {
  "seed", "lr", "setting", "length", "load", "key", "state_bytes", "params_total", "params_active",
  "flops_tok", "tokens", "value", "ci_lo", "ci_hi", "n",
}  # fmt: skip


def write(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes rows; columns that a row lacks stay empty.

  Raises:
    ValueError: a row has a column that is not in `COLUMNS`.
  """
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  put(path, text.getvalue().encode())


def put(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  partial.write_bytes(data)
  os.replace(partial, path)


def read(path: pathlib.Path) -> list[dict]:
  """The rows of a file: numbers as floats, None where a cell is empty."""
  with path.open(newline="") as file:
    return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def _value(name: str, text: str):
  if name not in NUMBERS:
    return text
  return float(text) if text else None


@contextlib.contextmanager
def claim(path: pathlib.Path) -> Iterator[bool]:
  """Whether this process has the cell of `path` for itself; no other gets it until the block ends
  or the process does, however it ends. For processes of one machine."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
      return
    yield True
