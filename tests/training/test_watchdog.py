"""The watchdog: what it ends, what it says, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from memjax.training import Watchdog, watchdog
from tests.training.test_kill import LIMIT, ROOT

SCRIPT = """
import sys, time
from memjax.training import Watchdog
with Watchdog(0.5, first=float(sys.argv[1]), process=(1, 2)) as watchdog:
  watchdog.begin("step", 13)
  print("begun", flush=True)
  time.sleep(float(sys.argv[2]))
  watchdog.rest()
"""


def start(first: float, seconds: float):
  words = [sys.executable, "-c", SCRIPT, str(first), str(seconds)]
  process = subprocess.Popen(
    words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout is not None and process.stdout.readline() == "begun\n"
  return process


def test_a_hang_ends_the_process_with_one_line():
  began, process = time.monotonic(), start(0, 10 * LIMIT)
  error = process.communicate(timeout=LIMIT)[1]
  assert process.returncode == 75 and time.monotonic() - began < LIMIT
  assert error.startswith("error: process 1 of 2 has waited ") and error.count("\n") == 1, error
  assert " s for step 13 to end: another process has stopped or died" in error


def test_the_time_in_which_the_process_was_stopped_does_not_count():
  process = start(60, 1.5)  # more than its own half second, so that `first` counts too
  os.kill(process.pid, signal.SIGSTOP)
  time.sleep(1.5)
  os.kill(process.pid, signal.SIGCONT)
  assert process.communicate(timeout=LIMIT)[1] == "" and process.returncode == 0


class Left(BaseException):
  pass


@pytest.fixture
def left(monkeypatch):
  """(message, status) of each process end that did not happen."""
  calls, seen = [], threading.Event()

  def leave(message, status):
    calls.append((message, status))
    seen.set()
    raise Left

  monkeypatch.setattr(watchdog, "_leave", leave)
  return calls, seen


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Left, there
def test_only_the_first_of_a_kind_has_time_to_compile(left):
  calls, seen = left
  with Watchdog(0.2, first=LIMIT, process=(0, 1)) as dog:
    dog.begin("step", 1)
    assert not seen.wait(0.6)
    dog.begin("step", 2)
    assert seen.wait(LIMIT)
  [(message, status)] = calls
  assert status == 75 and message.startswith("the process has waited ")
  assert "for step 2 to end: it hangs, or the time limit is too short" in message


def test_progress_and_rest_are_left_alone(left):
  calls, _ = left
  with Watchdog(0.3, process=(0, 2)) as dog:
    for step in range(12):
      dog.begin("step", step)
      time.sleep(0.05)
    dog.rest()
    time.sleep(0.6)
  with Watchdog(0, process=(0, 2)) as dog:
    dog.begin("step", 1)
    time.sleep(0.1)
  assert calls == []


LOST = (
  "UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:1\nmore"
)


def test_a_lost_process_ends_the_part_it_is_seen_in(left):
  calls, _ = left
  dog = Watchdog(1, process=(1, 2))
  with pytest.raises(Left), dog, dog.part():
    dog.begin("step", 7)
    raise ValueError(LOST)
  message, status = calls[0]
  assert status == 75 and message.count("\n") == 0
  assert message.startswith("process 1 of 2 lost the connection to another process at step 7: ")


@pytest.mark.parametrize(
  ("error", "status", "said"),
  [
    (ZeroDivisionError("by zero"), 75, "process 0 of 3 ended by the exception above"),
    (SystemExit(2), 2, None),
    (SystemExit("no such file"), 1, "no such file"),
    (KeyboardInterrupt(), 130, "interrupted"),
  ],
)
def test_an_exception_in_one_of_several_processes_ends_it_at_once(
  left, capsys, error, status, said
):
  calls, _ = left
  with pytest.raises(Left), Watchdog(0, process=(0, 3)):
    raise error
  [(message, got)] = calls
  assert got == status and (message is said is None or message.startswith(said))
  assert ("ZeroDivisionError: by zero" in capsys.readouterr().err) == (status == 75)


def test_one_process_ends_as_it_would_without(left):
  calls, _ = left
  with pytest.raises(ValueError, match="Gloo"), Watchdog(1, process=(0, 1)) as dog, dog.part():
    raise ValueError(LOST)
  with pytest.raises(SystemExit), Watchdog(0, process=(0, 2)):
    sys.exit(0)
  with pytest.raises(ValueError, match="timeout=-1"):
    Watchdog(-1)
  assert calls == []
