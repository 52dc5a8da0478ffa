"""Signals that end a run after the step it is in."""

import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

_asked = itertools.count(1)  # of the process, as what jax keeps of preemptions is


class StopOnSignal:
  """A context in which SIGTERM (or other signals) ends the run after its step, not the process.

  Enter it early in a script and pass it to `fit`: then a signal before the first step is not lost
  either. Outside of the main thread, where Python takes no signals, it does nothing.

  After `jax.distributed.initialize`, a signal to one process ends the run in all, each after the
  same step: jax's preemption service, which listens to SIGTERM, finds out which.

  Attributes:
    requested: the run is to stop.
  """

  def __init__(self, signals=(signal.SIGTERM,)):
    self.signals, self.requested, self._before = tuple(signals), False, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      shared = jax.distributed.is_initialized()
      own = [number for number in self.signals if not (shared and number == signal.SIGTERM)]
      act = self._pass_on if shared else self._request
      self._before = {number: signal.signal(number, act) for number in own}
    return self

  def agreed(self) -> bool:
    """Whether to stop now. All processes ask equally often, and get the same answer."""
    if jax.distributed.is_initialized() and not self.requested:
      self.requested = multihost_utils.reached_preemption_sync_point(next(_asked))
    return self.requested

  def _request(self, number, frame):
    self.requested = True

  def _pass_on(self, number, frame):
    os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
