"""Episodes of paired associates against chains that are put together again from their pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import paired_associative_inference as pai
from memjax.tasks.paired_associative_inference import PairedAssociativeInference
from memjax.tasks.task import TEST, scored

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


TASK = PairedAssociativeInference(chains=3, chain=4, questions=18, items=14)


@pytest.fixture(scope="module")
def episodes():
  """All questions about three chains; what readers of single pairs and of three make of them."""

  def run(index):
    batch = TASK.sample(0, TEST, index)
    return batch, *(jax.vmap(lambda x: TASK.linked(x, hops))(batch.inputs) for hops in (1, 3))  # noqa: B023

  return jax.tree.map(np.asarray, jax.jit(run)(jnp.arange(1200)))


def test_single_pairs_answer_direct_questions_and_chains_of_them_all(episodes):
  batch, one, all_pairs = episodes
  right = lambda predicted: (predicted == batch.targets)[batch.mask]  # noqa: E731
  direct = batch.meta["distance"][batch.mask] == 1
  assert right(all_pairs).all() and right(one)[direct].all()
  assert (~direct).sum() == 10800  # nothing but the pairs tells the answers
  assert abs(right(one)[~direct].mean() - 0.5) < 3 * (0.25 / 10800) ** 0.5
  assert abs(right(one).mean() - TASK.floor) < 0.01
  kinds = batch.meta["kind"][batch.mask].reshape(-1, 18)
  assert (np.sort(kinds, axis=1) == np.repeat(np.arange(1, 7), 3)).all()
  assert abs(np.mean(batch.targets[batch.mask] == pai.LEFT) - 0.5) < 0.012


def test_lures_stand_in_another_chain_at_the_same_place(episodes):
  batch = episodes[0]
  for row in range(30):
    ids = batch.inputs[row]
    where = places(ids[: TASK.told].reshape(-1, 3)[:, :2])
    kinds = batch.meta["kind"][row, TASK.told + 3 :: 4]
    sides = batch.targets[row, TASK.told + 3 :: 4] - pai.LEFT
    for (_, cue, *options), side, kind in zip(
      ids[TASK.told :].reshape(-1, 4), sides, kinds, strict=True
    ):
      right, lure = where[options[side]], where[options[1 - side]]
      assert where[cue][0] == right[0] != lure[0] and lure[1] in (right[1], 3 - right[1])
      # AB, BC, AC, CD, BD, AD; a chain is known but for its direction.
      link = [(0, 1), (1, 2), (0, 2), (2, 3), (1, 3), (0, 3)][kind - 1]
      found = sorted((where[cue][1], right[1]))
      assert found in (list(link), sorted(3 - i for i in link))


def test_vectors_tell_the_same():
  task = PairedAssociativeInference(chains=3, chain=4, questions=8, form="vectors", dim=16)
  batch = jax.jit(lambda index: task.sample(0, TEST, index))(jnp.arange(40))
  solved, shut = jax.jit(lambda b: (task.solve(b), task.solve(task.closed_book(b))))(batch)
  np.testing.assert_array_equal(solved, batch.targets)
  assert 0.35 < float(scored(shut, batch)["acc"]) < 0.65
  items = np.asarray(batch.inputs)[:, :9, :32].reshape(-1, 16)
  np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-5)
  assert batch.inputs.shape == (40, 17, 49) and abs(items.mean()) < 0.02


@pytest.mark.parametrize(
  ("settings", "match"),
  [
    ({"chain": 2}, r"chain=2 in 3\.\.12"),
    ({"questions": 49}, "questions=49 must differ: chains=16 of 3 allow 48"),
    ({"items": 47}, "items=47 must be at least 48"),
    ({"form": "vectors", "answers": "open"}, "form='vectors' needs answers='choice'"),
  ],
)
def test_episodes_that_do_not_fit_are_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    PairedAssociativeInference(**settings)
