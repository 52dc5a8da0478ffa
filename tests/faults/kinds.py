"""The faults. Each harms a running start, sees it end as it should, and mends what is outside.

A fault is `(site, start, random) -> (seconds until all had ended, step the next start goes on at)`.
"""

import contextlib
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np

from experiments.metrics import read
from tests.faults import nan_job
from tests.faults.harness import HEARTBEAT, NAME, Site, Start

Fault = Callable[[Site, Start, np.random.Generator], tuple[float, int]]
KILLED = -signal.SIGKILL


def go_on(site: Site, start: Start, random: np.random.Generator, saves: int = 0) -> None:
  """Lets a start run up to a random moment, past at least `saves` more checkpoints."""
  if saves:
    wanted = site.saved()[-1:] or [0]
    start.wait_until(lambda: len(site.saved()) > 1 and site.saved()[-1] > wanted[0], "a checkpoint")
  start.wait_for_step(site.step() + int(random.integers(2, 25)))
  time.sleep(random.uniform(0, 0.02))


def newest(site: Site) -> int:
  return (site.saved() or [0])[-1]


def kill(site, start, random):
  """SIGKILL to all processes."""
  go_on(site, start, random)
  start.signal(signal.SIGKILL)
  statuses, seconds = start.ended()
  assert set(statuses) == {KILLED}
  return seconds, newest(site)


def term(site, start, random):
  """SIGTERM to all: the run is saved, the status 0."""
  return _term(site, start, random, None)


def _term(site, start, random, indices):
  go_on(site, start, random)
  start.signal(signal.SIGTERM, indices)
  statuses, seconds = start.ended()
  assert set(statuses) == {0}, start.said()
  assert "Stopped; the state is saved" in start.said(0)
  assert newest(site) == site.step(), "the last step is not in the checkpoint"
  return seconds, newest(site)


def term_one(site, start, random):
  """SIGTERM to one process: all save after the same step and end with status 0."""
  return _term(site, start, random, [int(random.integers(site.processes))])


def kill_one(site, start, random):
  """SIGKILL to one process: the others end, and say why."""
  go_on(site, start, random)
  victim = int(random.integers(site.processes))
  start.signal(signal.SIGKILL, [victim])
  others = [i for i in range(site.processes) if i != victim]
  statuses, seconds = start.ended(others)
  start.kill()
  for index, status in zip(others, statuses, strict=True):
    _said_why(start, index, status)
  return seconds, newest(site)


def stop_one(site, start, random):
  """SIGSTOP to one process for longer than the others wait: all end, it when it goes on."""
  go_on(site, start, random)
  victim = int(random.integers(site.processes))
  start.signal(signal.SIGSTOP, [victim])
  others = [i for i in range(site.processes) if i != victim]
  statuses, seconds = start.ended(others)
  for index, status in zip(others, statuses, strict=True):
    _said_why(start, index, status)
  start.signal(signal.SIGCONT, [victim])
  [status], after = start.ended([victim])
  _said_why(start, victim, status)
  assert after < 4 * HEARTBEAT
  return seconds, newest(site)


def _said_why(start, index: int, status: int):
  """Our line and status; or, when process 0 is gone, jax's abort, which cannot be caught."""
  said = start.said(index)
  if status == -signal.SIGABRT:
    assert "This most likely indicates that another task died" in said, said
  else:
    assert status == 75, (status, said)
    assert_clear(said, "lost the connection to another process", "has waited")


def kill_in_write(site, start, random):
  """SIGKILL while a checkpoint is being written."""
  go_on(site, start, random)
  while True:
    start.wait_until(site.writing, "a checkpoint being written")
    start.signal(signal.SIGSTOP)  # all is as it was when they stopped: was it in a write?
    if site.writing():
      break
    start.signal(signal.SIGCONT)
  start.signal(signal.SIGKILL)
  statuses, seconds = start.ended()
  assert set(statuses) == {KILLED} and site.writing()
  return seconds, newest(site)


def _damaged(change):
  def fault(site, start, random):
    go_on(site, start, random, saves=1)
    start.signal(signal.SIGKILL)
    _, seconds = start.ended()
    *_, before, last = site.saved()
    folder = site.checkpoints / str(last)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    content = [p for p in files if p.parent.name == "d" or p.name == "metadata"]
    path = content[random.integers(len(content))]  # what holds the arrays, or the JSON
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(data, random)))
    return seconds, before

  return fault


def _cut(data, random):
  return data[: random.integers(len(data))]


def _flip(data, random):
  data[random.integers(len(data))] ^= 1 << int(random.integers(8))
  return data


def full_disk(site, start, random):
  """The file system of the work directory fills up; `site.work` is a file system of its own."""
  go_on(site, start, random, saves=1)
  ballast = site.work / "ballast"
  with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
    while True:
      file.write(bytes(1 << 12))
  with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
    while True:
      file.write(b"0")
  statuses, seconds = start.ended()
  said = start.said()
  ballast.unlink()
  assert 0 not in statuses, said
  assert_clear(said, "disk is full", "No space left")
  return seconds, newest(site)


def read_only(site, start, random):
  """The folder of the checkpoints becomes a read-only file system."""
  go_on(site, start, random, saves=1)
  folder = str(site.checkpoints)
  subprocess.run(["mount", "--bind", folder, folder], check=True)
  try:
    while subprocess.run(
      ["mount", "-o", "remount,bind,ro", folder], capture_output=True
    ).returncode:
      time.sleep(0.01)  # a file was being written
    statuses, seconds = start.ended()
  finally:
    subprocess.run(["umount", folder], check=True)
  assert 0 not in statuses, start.said()
  assert_clear(start.said(), "could not be written", "Read-only")
  return seconds, newest(site)


def vanished(site, start, random):
  """The text and its cache vanish: the start goes on with what it has; the next one says so."""
  go_on(site, start, random)
  site.text.unlink()
  shutil.rmtree(site.shared / "cache")
  start.wait_for_step(site.step() + 20)
  start.signal(signal.SIGKILL)
  _, seconds = start.ended()
  without = site.start()
  statuses, _ = without.ended()
  assert 0 not in statuses
  assert_clear(without.said(), "matches no file", "notes.txt")
  site.write_text()
  return seconds, newest(site)


def nan(site, start, random):
  """A gradient that is not finite: the steps are skipped and counted, also by the next start."""
  start.wait_for_step(max(nan_job.STEPS) + 2)
  seconds, step = kill(site, start, random)
  skipped = [row["skipped_steps"] for row in read(site.work / NAME / "metrics.csv")
             if "skipped_steps" in row]  # fmt: skip
  assert skipped[-1] == len(nan_job.STEPS)
  assert "was not finite and changed nothing" in start.said(0)
  return seconds, step


def clock(site, start, random):
  """The clock of the processes jumps by hours, twice, and a checkpoint is saved after each jump."""
  for _ in range(2):
    go_on(site, start, random)
    site.clock.write_text(repr(float(random.uniform(-10_000, 10_000))))
    before = newest(site)
    start.wait_until(lambda before=before: newest(site) > before, "a checkpoint after the jump")
  seconds, step = kill(site, start, random)
  site.clock.unlink()
  return seconds, step


def assert_clear(said: str, *words: str) -> None:
  """Asserts that an error was said in one line that holds the words, and no traceback."""
  errors = [line for line in said.splitlines() if line.startswith("error: ")]
  assert errors and any(word in line for line in errors for word in words), said
  assert "Traceback" not in said, said


def own_file_system(folder: pathlib.Path) -> bool:
  """Makes the folder a file system of 16 MB; False where this user may not."""
  folder.mkdir(parents=True, exist_ok=True)
  words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
  return subprocess.run(words, capture_output=True).returncode == 0


def possible(faults: dict[str, Fault]) -> dict[str, Fault]:
  """Those that this user may make: some need a file system of their own."""
  with tempfile.TemporaryDirectory() as folder:
    if own_file_system(pathlib.Path(folder)):
      subprocess.run(["umount", folder], check=True)
      return faults
  return {name: fault for name, fault in faults.items() if not name.startswith("disk")}


truncated, flipped = _damaged(_cut), _damaged(_flip)
ONE: dict[str, Fault] = {
  "SIGKILL": kill,
  "SIGTERM": term,
  "SIGKILL in a checkpoint's write": kill_in_write,
  "newest checkpoint truncated": truncated,
  "newest checkpoint: a bit flipped": flipped,
  "disk full": full_disk,
  "disk read-only": read_only,
  "data file vanished": vanished,
  "NaN in a gradient": nan,
  "clock jumps": clock,
}
TWO: dict[str, Fault] = {
  "SIGKILL to one": kill_one,
  "SIGKILL to all": kill,
  "SIGTERM to one": term_one,
  "SIGSTOP to one": stop_one,
  "SIGKILL in a checkpoint's write": kill_in_write,
  "newest checkpoint truncated": truncated,
  "newest checkpoint: a bit flipped": flipped,
  "disk full": full_disk,
}
