"""Episodes of paired associates against chains that are put together again from their pairs."""

import jax
import numpy as np
import pytest

from memjax.tasks import paired_associative_inference as pai

sample = jax.jit(pai.sample, static_argnums=(1, 2), static_argnames=("distance",))
WORLD = pai.World(items=14, chains=3, length=4)


def places(facts):
  """The chain and the place in it of each item, from the pairs alone."""
  beside: dict[int, list[int]] = {}
  for a, b in facts:
    beside.setdefault(int(a), []).append(int(b))
    beside.setdefault(int(b), []).append(int(a))
  found, chain = {}, 0
  for start in sorted(beside):
    if start in found or len(beside[start]) == 2:
      continue
    item, place = start, 0
    while item is not None:
      found[item] = chain, place
      item, place = next((i for i in beside[item] if i not in found), None), place + 1
    chain += 1
  return found


@pytest.mark.parametrize("distance", [None, 2])
def test_answers_follow_from_the_pairs(distance):
  episodes = sample(jax.random.key(0), 300, WORLD, distance=distance)
  facts, question, answer, side, apart = (np.asarray(a) for a in jax.tree.leaves(episodes))
  assert facts.shape == (300, WORLD.facts, 2) and facts.min() == 1 and facts.max() == 14
  seen, orders = [], set()
  for pairs, (cue, *options), right, s, d in zip(facts, question, answer, side, apart, strict=True):
    where, lure = places(pairs), options[1 - s]
    assert len(where) == 12 and options[s] == right
    assert where[cue][0] == where[right][0] != where[lure][0]
    assert abs(where[cue][1] - where[right][1]) == d
    assert where[lure][1] in (where[right][1], 3 - where[right][1])  # a chain has no first end
    seen.append(d)
    orders.add(tuple(np.argsort(pairs[:, 0])))
  assert len(orders) > 100
  assert set(side) == {0, 1} and abs(side.mean() - 0.5) < 0.1
  shares = np.bincount(seen, minlength=4)[1:] / 300
  expected = [3 / 6, 2 / 6, 1 / 6] if distance is None else [0, 1, 0]
  np.testing.assert_allclose(shares, expected, atol=0.1)  # of 300 draws: over three deviations


def test_pairs_and_questions_go_both_ways():
  """Of two items either may be the cue, and either may come first in a pair."""
  episodes = sample(jax.random.key(1), 200, pai.World(items=4, chains=2, length=2), distance=1)
  first = [[cue, right] in pairs.tolist() for pairs, cue, right in zip(
    np.asarray(episodes.facts), np.asarray(episodes.question)[:, 0], np.asarray(episodes.answer),
    strict=True)]  # fmt: skip
  assert 0.35 < np.mean(first) < 0.65


def test_what_cannot_be_asked_is_refused():
  with pytest.raises(ValueError, match="items >= chains"):
    pai.World(items=8, chains=3, length=3)
  with pytest.raises(ValueError, match=r"distance=3 must lie in 1\.\.2"):
    pai.sample(jax.random.key(0), 1, pai.World(), distance=3)
