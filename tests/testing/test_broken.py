"""The laws can fail: each broken memory is caught by its own law, and only where `BROKEN` says."""

import pytest

from memjax.testing import FAST, LAWS, report
from tests.testing.broken import BROKEN, DIM, Good, WrongBackward


def test_the_good_memory_passes_all_laws():
  verdict = report(Good, dim=DIM)
  assert {r.law for r in verdict.results if r.status == "passed"} == set(LAWS) - {"implementations"}


@pytest.mark.parametrize("memory", BROKEN, ids=lambda memory: memory.__name__)
def test_only_its_own_law_catches(memory):
  own = {part.partition(":")[0] for part in BROKEN[memory]} - set(FAST)
  both = ("reference", "fast") if issubclass(memory, WrongBackward) else ()
  verdict = report(memory, dim=DIM, laws=(*FAST, *own), implementations=both)
  assert verdict.parts == BROKEN[memory], str(verdict)


def test_every_law_has_a_broken_memory():
  assert {part.partition(":")[0] for parts in BROKEN.values() for part in parts} == set(LAWS)
