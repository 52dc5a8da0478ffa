"""Facts that change: how often, where, among what; and the two cheap readers of the floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.fact_updates import FactUpdates
from memjax.tasks.task import TEST

TASK = FactUpdates(turns=6, block=4, updates=(0, 3), subjects=50, relations=6, objects=8)


@pytest.fixture(scope="module")
def conversations():
  batch = jax.jit(lambda index: TASK.sample(0, TEST, index))(jnp.arange(800))
  facts = np.asarray(batch.inputs)[:, : TASK.told].reshape(800, -1, 4)
  last = lambda a: np.asarray(a)[:, -1]  # noqa: E731
  asked = np.asarray(batch.inputs)[:, TASK.told + 1 :]
  return facts, asked, last(batch.targets), last(batch.meta["updates"]), last(batch.meta["age"])


def test_pivots_change_as_often_as_told_in_turns_of_their_own(conversations):
  for facts, (subject, relation), due, updates, age in zip(*conversations, strict=True):
    own = (facts[:, 0] == subject) & (facts[:, 1] == relation)
    at, objects = np.flatnonzero(own), facts[own, 2]
    assert len(at) == 1 + updates == len(set(at // 4)) == len(set(objects))
    assert objects[-1] == due and age == 5 - at[-1] // 4
    assert any(~own & (facts[:, 0] == subject)) and any(~own & (facts[:, 1] == relation))
    kind = facts[:, 1] - 53  # every object is of its relation's kind
    assert ((facts[:, 2] - 59) // 8 == kind).all() and (facts[:, 3] == 1).all()
  shares = np.bincount(conversations[3], minlength=4) / 800
  np.testing.assert_allclose(shares, 0.25, atol=0.06)


@pytest.mark.parametrize("updates", [(0, 0), (0, 3), (3, 3)])
def test_the_floor_is_the_better_of_two_cheap_readers(conversations, updates):
  ever, latest = [], []
  for facts, asked, due, count, _ in zip(*conversations, strict=True):
    if updates[0] <= count <= updates[1]:
      alike = facts[facts[:, 1] == asked[1]]
      ever.append(1 / len(set(alike[alike[:, 0] == asked[0], 2])))
      latest.append(alike[-1, 2] == due)
  task = FactUpdates(6, 4, 1, updates, 50, 6, 8)
  assert abs(max(np.mean(ever), np.mean(latest)) - task.floor) < 0.05


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"updates": (0, 10)}, "most < turns=10"),
    ({"updates": (3, 2)}, "0 <= least <= most"),
    ({"pivots": 6}, "pivots=6 must not exceed block=5"),
    ({"turns": 5, "block": 2, "pivots": 2}, "lack room for 2 distractors each"),
  ],
)
def test_what_does_not_fit_is_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    FactUpdates(**settings)
