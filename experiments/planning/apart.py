"""Work in a process of its own, which ends once the result is there, whatever its threads do."""

import multiprocessing
import os
import threading
from collections.abc import Callable


def run(fn: Callable, *args):
  """`fn(*args)`, all of which can be pickled.

  Raises:
    What `fn` raises; RuntimeError where the process dies.
  """
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe(duplex=False)
  process = context.Process(target=_child, args=(there, fn, args), daemon=True)
  process.start()
  there.close()
  try:
    error, value = here.recv()
  except EOFError:
    process.join()
    raise RuntimeError(f"the process that compiles died: exit status {process.exitcode}") from None
  finally:
    process.kill()
    process.join()
  if error is not None:
    raise error
  return value


def _end_with_parent() -> None:
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _child(there, fn: Callable, args: tuple) -> None:
  threading.Thread(target=_end_with_parent, daemon=True).start()
  try:
    answer = None, fn(*args)
  except Exception as error:
    answer = (error if isinstance(error, ValueError) else RuntimeError(str(error))), None
  there.send(answer)
  there.close()
