"""What the user sees: a progress bar in a terminal, plain lines in a log file, tables."""

import datetime
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


class TrainingBar:
  """A bar with loss in bits per byte, speed and time left; without a terminal, a line now and then.

  Args:
    title: what is trained.   steps: the last step.   start: steps done already.   seconds: least
      time between plain lines.
  """

  def __init__(self, title: str, steps: int, start: int = 0, seconds: float = 15.0):
    self.title, self.steps, self.seconds, self.last = title, steps, seconds, time.monotonic()
    self.start, self.began = start, self.last
    self.bar = None
    if console.is_terminal:
      self.bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[bits]:.3f} bits/byte  {task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
      )
      self.task = self.bar.add_task(
        title, total=steps, completed=start, bits=float("nan"), speed=""
      )
      self.bar.start()

  def step(self, step: int, bits: float, speed: str) -> None:
    """Shows training step `step`: loss in bits per byte, how fast it went."""
    if self.bar is not None:
      self.bar.update(self.task, completed=step, bits=bits, speed=speed)
    elif time.monotonic() - self.last > self.seconds or step == self.steps:
      self.last = time.monotonic()
      per_step = (self.last - self.began) / max(step - self.start, 1)
      left = datetime.timedelta(seconds=round(per_step * (self.steps - step)))
      console.print(
        f"{self.title}  step {step}/{self.steps}  {bits:.3f} bits/byte  {speed}  {left} left"
      )

  def line(self, text: str) -> None:
    """A line above the bar."""
    (self.bar.console if self.bar is not None else console).print(text)

  def close(self) -> None:
    """Ends the bar."""
    if self.bar is not None:
      self.bar.stop()


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
  """Prints a table, and returns it as Markdown for the work directory."""
  shown = Table(title=title, title_justify="left")
  for position, name in enumerate(columns):
    shown.add_column(name, justify="left" if position == 0 else "right", no_wrap=True)
  for row in rows:
    shown.add_row(*row)
  console.print(shown)
  lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
  return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def plain_table(columns: list[str], rows: list[list[str]]) -> None:
  """Prints a table whose lines are as long as they need be: for names that go on to other tools."""
  widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
  for row in [columns, *rows]:
    first, *others = (
      word.ljust(width) if place == 0 else word.rjust(width)
      for place, (word, width) in enumerate(zip(row, widths, strict=True))
    )
    console.print("  ".join([first, *others]).rstrip(), markup=False)


def number_of_bytes(size: float) -> str:
  """`35.2 MB`."""
  for unit in ("bytes", "kB", "MB", "GB"):
    if size < 1000:
      return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
    size /= 1000
  return f"{size:,.1f} TB"
