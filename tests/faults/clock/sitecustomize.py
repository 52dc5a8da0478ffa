"""Found on PYTHONPATH: the clock jumps by the hours in the file that $FAULT_CLOCK names."""

import datetime
import os
import time

_time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime


def _jump() -> float:
  try:
    with open(os.environ["FAULT_CLOCK"]) as file:
      return 3600 * float(file.read())
  except (OSError, KeyError, ValueError):
    return 0.0


class _Jumping(_datetime):
  @classmethod
  def now(cls, tz=None):
    return _datetime.now(tz) + datetime.timedelta(seconds=_jump())


time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + int(1e9 * _jump())
datetime.datetime = _Jumping  # type: ignore[misc]
