"""A profiler trace of some steps of a run, for TensorBoard and Perfetto."""

import contextlib
import pathlib
import re
from collections.abc import Callable

import jax


class Profile:
  """Traces the steps `first <= step < end` into a folder; hand it to `fit(around_step=...)`.

  Use it as a context manager: leaving it ends a trace that a signal or an error cut short.

  Args:
    steps: "10:13": the steps 10, 11 and 12. The first step compiles: leave it out.
    folder: of the trace: `plugins/profile/...` for TensorBoard; the `.trace.json.gz` in it opens in
      Perfetto.

  Raises:
    ValueError: `steps` is something else.
  """

  def __init__(self, steps: str, folder):
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(steps))
    self.first, self.end = map(int, found.groups()) if found else (0, 0)
    if not 1 <= self.first < self.end:
      raise ValueError(
        f"steps={steps!r} must be FIRST:END with 1 <= FIRST < END, such as '10:13' for the steps "
        "10, 11 and 12"
      )
    self.folder, self.active = pathlib.Path(folder), False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop()

  def __call__(self, step: int, step_fn: Callable, state, batch):
    """Runs `step_fn(state, batch)`, which is step number `step`."""
    if not self.first <= step < self.end:
      return step_fn(state, batch)
    if not self.active:
      jax.block_until_ready(state)  # what was under way is not of these steps
      self.folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(self.folder)
      self.active = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      out = step_fn(state, batch)
    if step == self.end - 1:
      jax.block_until_ready(out)
      self._stop()
    return out

  def _stop(self) -> None:
    if self.active:
      self.active = False
      jax.profiler.stop_trace()


def profiling(steps: str, folder) -> contextlib.AbstractContextManager[Profile | None]:
  """A `Profile`, or for "" a context of None, with which `fit` pays nothing."""
  return Profile(steps, folder) if steps else contextlib.nullcontext()
