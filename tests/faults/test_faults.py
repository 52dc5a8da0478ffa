"""The short form of the faults, by default; all of them, 50 times, with `-m slow`.

`pytest -m slow tests/faults -s` prints the figures that docs/reliability.md holds.
"""

import collections
import random
import statistics

import pytest

from tests.faults import kinds
from tests.faults.chain import chain, new_site

SHORT = (
  "SIGKILL in a checkpoint's write",
  "SIGTERM",
  "newest checkpoint: a bit flipped",
  "clock jumps",
)
STEPS = {1: 500, 2: 300}  # by the number of processes


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """Text, caches and logs of all runs."""
  return tmp_path_factory.mktemp("shared")


def undisturbed(folder, shared, steps, faults=(), processes=1):
  """The arrays at the end of a run without faults."""
  with new_site(folder, shared, faults, steps=steps, processes=processes) as site:
    site.write_text()
    site.start().finish()
    return site.arrays()


def test_four_faults_lose_nothing(tmp_path, shared):
  whole = undisturbed(tmp_path / "whole", shared, steps=150)
  faults = {kind: kinds.ONE[kind] for kind in SHORT}
  with new_site(tmp_path / "harmed", shared, faults, steps=150) as site:
    assert len(chain(site, faults, whole, seed=0)) == 4


def dealt(names, count: int, size: int, seed: int) -> list[list[str]]:
  """`count` chains of `size` faults: all kinds are used up before one comes again."""
  draw, chains = random.Random(seed), []
  pool: list[str] = []
  while len(chains) < count:
    taken: list[str] = []
    while len(taken) < size:
      pool = pool or draw.sample(sorted(names), len(names))
      fresh = [name for name in pool if name not in taken]
      if not fresh:
        pool += draw.sample(sorted(names), len(names))
        continue
      pool.remove(fresh[0])
      taken.append(fresh[0])
    chains.append(sorted(taken, key=lambda name: name != "NaN in a gradient"))  # that one first
  return chains


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, shared):
  """The ends of undisturbed runs, each made on first use."""
  made = {}

  def get(faults, processes: int):
    key = "NaN in a gradient" in faults, processes
    if key not in made:
      folder = tmp_path_factory.mktemp("whole") / "run"
      made[key] = undisturbed(folder, shared, STEPS[processes], faults, processes)
    return made[key]

  return get


@pytest.fixture(scope="module")
def figures():
  """Outcomes; what they come to is printed at the end."""
  outcomes = []
  yield outcomes
  print("\n" + table(outcomes))


def table(outcomes) -> str:
  """Kinds, how often, median and longest seconds, as Markdown."""
  kinds_of = collections.defaultdict(list)
  for outcome in outcomes:
    kinds_of[outcome.kind, outcome.processes].append(outcome)
  head = "| fault | processes | times | seconds until all ended | until it went on | lost |"
  lines = [head, "|---|---|---|---|---|---|"]
  for (kind, processes), found in sorted(kinds_of.items(), key=lambda item: item[0][::-1]):
    spans = [_span(o.ended for o in found), _span(o.resumed for o in found)]
    lines.append(f"| {kind} | {processes} | {len(found)} | {spans[0]} | {spans[1]} | 0 |")
  return "\n".join([*lines, "", f"{len(outcomes)} faults, 0 lost"])


def _span(values) -> str:
  values = sorted(values)
  return f"{statistics.median(values):.1f} (at most {values[-1]:.1f})"


ONE = dealt(kinds.possible(kinds.ONE), count=5, size=5, seed=0)
TWO = dealt(kinds.possible(kinds.TWO), count=5, size=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(ONE)))
def test_faults_of_one_process(tmp_path, shared, wholes, figures, seed):
  faults = {kind: kinds.ONE[kind] for kind in ONE[seed]}
  with new_site(tmp_path / f"one-{seed}", shared, faults, steps=STEPS[1]) as site:
    figures += chain(site, faults, wholes(faults, 1), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(TWO)))
def test_faults_of_two_processes(tmp_path, shared, wholes, figures, seed):
  faults = {kind: kinds.TWO[kind] for kind in TWO[seed]}
  with new_site(tmp_path / f"two-{seed}", shared, faults, steps=STEPS[2], processes=2) as site:
    figures += chain(site, faults, wholes(faults, 2), seed)
