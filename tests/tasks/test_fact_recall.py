"""Facts as a stream: each once in an exposure, the same ones in other words, strangers apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import fact_recall
from memjax.tasks.fact_recall import FactRecall
from memjax.tasks.task import TEST, TRAIN, VALIDATION

TASK = FactRecall(people=40, names=(9, 10), choices=(4, 9), digits=2, independent=0.5)


@pytest.fixture(scope="module")
def asked():
  """Facts (name, attribute, value) of two exposures by split."""
  make = jax.jit(lambda split, index: TASK.sample(0, split, index))
  found = {}
  for split in (TRAIN, VALIDATION, TEST):
    batch = jax.tree.map(np.asarray, make(split, jnp.arange(160)))
    assert (batch.mask == [False, False, True, True]).all()
    found[split] = [
      (*map(int, ids[:3]), *map(int, due[2:]))
      for ids, due in zip(batch.inputs, batch.targets, strict=True)
    ]
  return found


def test_an_exposure_holds_every_fact_once_in_an_order_of_its_own(asked):
  first, second = asked[TRAIN][:80], asked[TRAIN][80:]
  assert len(set(first)) == 80 and set(first) == set(second) and first != second
  people = {fact[:2] for fact in first}
  assert len(people) == 40 and len(asked[TRAIN][0]) == 5


def test_validation_asks_the_same_in_other_words_and_test_asks_strangers(asked):
  turned = [(first, second, a, *value) for a, first, second, *value in asked[VALIDATION]]
  assert set(turned) == set(asked[TRAIN]) and turned != asked[TRAIN]
  names = lambda split: {fact[:2] for fact in asked[split]}  # noqa: E731
  assert len(names(TEST)) == 40 and not names(TEST) & names(TRAIN)


def test_half_of_the_values_follow_from_the_family(asked):
  alike, pairs = 0.0, 0.0
  facts = sorted(set(asked[TRAIN]) | set(asked[TEST]))
  for one in facts:
    for other in facts:
      if one < other and one[1:3] == other[1:3]:
        pairs, alike = pairs + 1, alike + (one[3:] == other[3:])
  chance = np.mean([1 / n for n in TASK.values])
  assert abs(alike / pairs - (0.25 + 0.75 * chance)) < 0.1
  assert TASK.bits < FactRecall(40, (9, 10), (4, 9), 2).bits + 10 * (np.log2(16) + np.log2(81))


def test_the_published_worlds_have_their_bits():
  people = fact_recall.BIOGRAPHIES, fact_recall.IN_TOOL
  each = [task.bits / task.people for task in people]
  np.testing.assert_allclose(each, [47.6, 31.25], atol=0.05)
  assert fact_recall.IN_TOOL.state_bits < 20


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"people": 50, "names": (9, 10)}, r"need 100 names; names=\(9, 10\) gives 90"),
    ({"choices": (1,)}, r"choices=\(1,\) two each"),
    ({"independent": 1.5}, r"independent=1\.5 must lie in 0\.\.1"),
  ],
)
def test_what_does_not_fit_is_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    FactRecall(**settings)
