"""Real processes, killed and started again: the same losses and the same bits at the end."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPORARY = "*.orbax-checkpoint-tmp*"
LIMIT = 240  # seconds a process may take; a busy machine needs ten times what a quiet one does


def start(workdir):
  command = [sys.executable, "-W", "error", "-m", "tests.training.killed", str(workdir)]
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process, code=0):
  output, _ = process.communicate(timeout=LIMIT)
  assert process.returncode == code, output
  return output


def wait_until(condition, process):
  """Waits for `condition()`; fails if the process ends before."""
  deadline = time.monotonic() + LIMIT
  while not condition():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline, "nothing happened"
    time.sleep(0.0005)


def lines(workdir):
  path = workdir / "losses.txt"
  return path.read_text().splitlines() if path.exists() else []


def steps(workdir):
  return sum(line.startswith("step") for line in lines(workdir))


def results(workdir):
  """What was logged under each name; a step that was repeated must have repeated its loss."""
  found = {}
  for line in lines(workdir):
    *name, value = line.split()
    if name != ["start"]:
      assert found.setdefault(tuple(name), value) == value, name
  return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  finish(start(workdir))
  assert len(results(workdir)) == 44
  return workdir


def assert_same_end(workdir, uninterrupted):
  assert results(workdir) == results(uninterrupted)
  with np.load(workdir / "final.npz") as got, np.load(uninterrupted / "final.npz") as wanted:
    assert set(got.files) == set(wanted.files) and len(got.files) > 15
    for name in wanted.files:
      assert got[name].dtype == wanted[name].dtype
      assert got[name].tobytes() == wanted[name].tobytes(), name


def test_sigkill_in_the_middle_of_saves(tmp_path, uninterrupted):
  """Kills two processes as soon as a save has begun to write; a third one finishes."""
  folder = tmp_path / "checkpoints"
  caught = 0
  for kill in range(2):
    process, done = start(tmp_path), steps(tmp_path)
    wait_until(lambda done=done, n=3 + 8 * kill: steps(tmp_path) > done + n, process)
    wait_until(lambda: any(folder.glob(TEMPORARY)), process)
    process.kill()
    process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL
    caught += any(folder.glob(TEMPORARY))
  assert caught, "no kill fell into a save"
  finish(start(tmp_path))
  assert_same_end(tmp_path, uninterrupted)
  starts = [line for line in lines(tmp_path) if line.startswith("start")]
  assert len(starts) == 3 and starts[-1] != "start 0"
  assert not any(folder.glob(TEMPORARY))


def test_sigterm_saves_and_exits_with_zero(tmp_path, uninterrupted):
  process = start(tmp_path)
  wait_until(lambda: steps(tmp_path) > 5, process)
  os.kill(process.pid, signal.SIGTERM)
  finish(process)
  last = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
  assert last == int(lines(tmp_path)[-1].split()[1]), "the last step is not in the checkpoint"
  assert not (tmp_path / "final.npz").exists()
  finish(start(tmp_path))
  assert_same_end(tmp_path, uninterrupted)
  starts = [int(line.split()[1]) for line in lines(tmp_path) if line.startswith("start")]
  assert starts == [0, last]
