"""A hang becomes an error: one line, and an exit status that says "start it again"."""

import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

import jax

STATUS = 75  # EX_TEMPFAIL: nothing is lost, the same command may be started again
_LOST = (  # what a collective says when a process at its other end has gone
  "gloo",
  "nccl",
  "connection closed by peer",
  "connection reset by peer",
  "socket closed",
  "unavailable:",
  "deadline_exceeded:",
  "heartbeat",
  "coordination service",
)


class Watchdog:
  """Ends the process with one line on standard error when a part of the run does not end in time.

  A process that waits for one that has stopped or died would wait for ever: a collective has no
  timeout of its own. A context manager around the run; `fit(watchdog=)` tells it what begins.

  Leaving it by an exception in a run of several processes ends the process at once, with its
  status (`STATUS` if it has none): the usual way out waits minutes for the other processes, which
  wait for this one. They then see the connection break.

  The time in which this process itself did not run (SIGSTOP, a suspended machine) does not count,
  and neither does a clock that is set.

  Args:
    timeout: seconds that one step, evaluation or save may take; 0: any time.
    first: seconds more for the first of each kind: it compiles, and reads what the others find in
      memory.
    process: index and number of processes; None: jax is asked on entering, which starts its
      devices.

  Raises:
    ValueError: a negative number.
  """

  def __init__(self, timeout: float, *, first: float = 0.0, process: tuple[int, int] | None = None):
    if timeout < 0 or first < 0:
      raise ValueError(f"{timeout=} and {first=} must be >= 0 seconds (timeout=0: no limit)")
    self.timeout, self.first = timeout, first
    self._process = process
    self._now: tuple[str, str] | None = None  # kind and which: a new tuple for each beginning
    self._done: set[str] = set()
    self._closed = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self):
    if self._process is None:
      self._process = jax.process_index(), jax.process_count()
    if self.timeout:
      self._closed.clear()
      self._thread = threading.Thread(target=self._watch, name="memjax watchdog", daemon=True)
      self._thread.start()
    return self

  def __exit__(self, kind, error, traceback):
    if self._several and error is not None and getattr(error, "code", True):  # not sys.exit(0)
      self._give_up(error)
    self._closed.set()
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    self._now = None

  def begin(self, kind: str, which: object = "") -> None:
    """What began before has ended, and this begins.

    Args:
      kind: such as "step" or "the evaluation after step".
      which: its number; not part of the kind.
    """
    if self._now is not None:
      self._done.add(self._now[0])
    self._now = (kind, f"{kind} {which}".rstrip())

  def rest(self) -> None:
    """What began has ended, and nothing is waited for."""
    if self._now is not None:
      self._done.add(self._now[0])
    self._now = None

  @contextlib.contextmanager
  def part(self):
    """A part of the run that tells what begins. An exception that says that another process has
    gone ends the process here: on the way out, even closing the checkpoints would wait for it."""
    try:
      yield
    except Exception as error:
      if self._several and lost_a_process(error):
        self._give_up(error)
      raise
    finally:
      self.rest()

  @property
  def _several(self) -> bool:
    return self._process is not None and self._process[1] > 1

  def _watch(self):
    tick = min(1.0, self.timeout / 10)
    seen, waited, last = None, 0.0, time.monotonic()
    while not self._closed.wait(tick):
      now, current = time.monotonic(), self._now
      step, last = min(now - last, 2 * tick), now  # not the time in which this process was stopped
      if current is not seen:
        seen, waited = current, 0.0
      elif current is not None:
        waited += step
        if waited >= self.timeout + (self.first if current[0] not in self._done else 0.0):
          self._hangs(current[1], waited)

  def _hangs(self, what: str, waited: float) -> NoReturn:
    if self._several:
      why = (
        "another process has stopped or died, or they no longer reach each other. Look at what the "
        "others printed, then start the same command again on all"
      )
    else:
      why = "it hangs, or the time limit is too short. Start the same command again"
    _leave(f"{self._who()} has waited {waited:.0f} s for {what} to end: {why}", STATUS)

  def _give_up(self, error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
      _leave("interrupted", 130)
    if isinstance(error, SystemExit):  # has said why already
      if isinstance(error.code, str):
        _leave(error.code, 1)
      _leave(None, error.code if isinstance(error.code, int) else 1)
    what = f" at {self._now[1]}" if self._now is not None else ""
    if lost_a_process(error):
      _leave(
        f"{self._who()} lost the connection to another process{what}: look at what the others "
        f"printed, then start the same command again on all ({_short(error)})",
        STATUS,
      )
    sys.excepthook(type(error), error, error.__traceback__)
    _leave(f"{self._who()} ended{what} by the exception above; the others end too", STATUS)

  def _who(self) -> str:
    index, count = self._process or (0, 1)
    return f"process {index} of {count}" if count > 1 else "the process"


def lost_a_process(error: BaseException) -> bool:
  """Whether an error is the runtime's when a process at the other end of a collective has gone."""
  text = str(error).lower()
  return isinstance(error, (RuntimeError, ValueError)) and any(sign in text for sign in _LOST)


def _leave(message: str | None, status: int) -> NoReturn:
  flush = threading.Thread(target=_flush, daemon=True)  # whoever hangs may hold the stream
  flush.start()
  flush.join(1.0)
  if message is not None:
    os.write(2, f"error: {message}\n".encode())
  os._exit(status)


def _flush():
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()


def _short(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
