"""How long a comparison will take, before it does: one step of every cell, compiled and timed."""

import time

import jax

from experiments.comparison import cells
from experiments.comparison.plan import Cell
from experiments.console import console

TESTS = 0.25  # of a training, about what the tests take besides


def of(cell: Cell) -> tuple[float, float]:
  """Seconds to compile, and seconds of a step of all its runs."""
  program = cells.trainer(cell)
  runs, rests = program.start()
  marks = [time.monotonic()]
  for first, count in ((0, 1), (1, 2)):
    runs = jax.block_until_ready(program.block(runs, rests, first, count)[0])
    marks.append(time.monotonic())
  step = (marks[2] - marks[1]) / 2
  return max(0.0, marks[1] - marks[0] - step), step


def show(wanted: list[Cell]) -> None:
  """Prints the estimate of cells that are not finished, each as it is known: upper bounds, as
  trainings that have learned all stop early. Streams are not counted."""
  total = 0.0
  for cell in wanted:
    compiling, step = of(cell)
    seconds = compiling + step * cell.training.steps * (1 + TESTS)
    total += seconds
    console.print(
      f"{cell.setup.name} {cell.memory}: {compiling:.0f} s to compile, {1000 * step:.0f} ms a "
      f"step, at most {seconds / 60:.1f} minutes",
      markup=False,
    )
  console.print(f"{len(wanted)} cells: at most {total / 60:.0f} minutes in one process")
