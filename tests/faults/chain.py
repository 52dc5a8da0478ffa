"""A run that is hit by one fault after the other, and what became of it."""

import contextlib
import dataclasses
import functools
import pathlib
import re
import subprocess
import time

import numpy as np

from tests.faults import kinds
from tests.faults.harness import Site, same_end


@dataclasses.dataclass
class Outcome:
  """One fault: its kind, seconds until all processes had ended, seconds from the next start to its
  first step."""

  kind: str
  processes: int
  ended: float
  resumed: float


def chain(site: Site, faults: dict[str, kinds.Fault], undisturbed, seed: int) -> list[Outcome]:
  """Runs a site to its end through all the faults, in this order, at moments drawn from the seed.

  Asserts that each start goes on where the newest whole checkpoint stands, and that the end is that
  of the undisturbed run.

  Args:
    site: unused.
    undisturbed: `Site.arrays` of a run of the same recipe without faults.
  """
  random, outcomes = np.random.default_rng(seed), []
  jumping = "clock jumps" in faults
  start = site.start(jumping)
  try:
    for kind, fault in faults.items():
      ended, step = fault(site, start, random)
      began, start = time.monotonic(), site.start(jumping)
      start.wait_until(functools.partial(_goes_on, start, step), f"step {step + 1} after {kind}")
      outcomes.append(Outcome(kind, site.processes, ended, time.monotonic() - began))
    start.finish()
  finally:
    start.kill()
  same_end(site, undisturbed)
  return outcomes


def _goes_on(start, step: int) -> bool:
  """Whether the start has made a step; asserts that it began after `step`."""
  said = start.said(0)
  if step == 0:  # killed before the first checkpoint: then it is there
    return bool(start.site.saved())
  found = re.search(r"goes on at step (\d+)", said)
  if found is None:
    return False
  assert int(found[1]) == step, f"goes on at step {found[1]} instead of {step}: {said}"
  return start.site.step() > step


@contextlib.contextmanager
def new_site(folder: pathlib.Path, shared: pathlib.Path, faults, **settings):
  """A site for a chain of faults: with a file system of its own where one of them needs it."""
  site = Site(folder, shared, **settings)
  if "NaN in a gradient" in faults:
    site.fields["job"] = "tests.faults.nan_job"
  mounted = "disk full" in faults and kinds.own_file_system(folder)
  try:
    yield site
  finally:
    if mounted:
      subprocess.run(["umount", str(folder)], check=True)
