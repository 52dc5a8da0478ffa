"""TensorBoard events, written by the thread that calls.

tensorboardX's own writer has a thread and a queue. When the clock is set back by weeks, or the disk
is full, that thread ends, the queue fills, and the training waits for it for ever.
"""

import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

_EVERY = 30.0  # seconds between writes to the disk


class Events:
  """Scalars to a file `events.out.tfevents...` in a folder.

  Args:
    folder: where to write.
    start: events of later steps, left by a run that was killed, are not shown; 0: a new run.

  Raises:
    OSError: the file cannot be written, here and in the methods.
  """

  def __init__(self, folder: pathlib.Path, start: int = 0):
    self._writer = EventsWriter(str(folder / "events"))
    self._flushed = time.monotonic()
    if start:
      self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Adds one number of a step."""
    self._write(step, summary=scalar(name, value))

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()

  def _write(self, step: int, **what) -> None:
    self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
    if time.monotonic() - self._flushed > _EVERY:
      self._writer.flush()
      self._flushed = time.monotonic()
