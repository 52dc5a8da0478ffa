"""Random facts: their tokens, and that both estimators count what is stored."""

import jax
import numpy as np
import pytest

from memjax.tasks import facts

WORLD = facts.World(people=30, names=(8, 4, 5), choices=(2, 16, 256))


@pytest.fixture(scope="module")
def both():
  return facts.sample(jax.random.key(0), WORLD)


def test_names_are_distinct_combinations_of_tokens_that_people_share(both):
  names = np.concatenate([people.names for people in both])
  assert names.shape == (60, 3) and len({tuple(name) for name in names}) == 60
  for part, (low, high) in enumerate([(0, 8), (8, 12), (12, 17)]):
    assert set(names[:, part]) == set(range(low, high))


def test_values_are_fair_and_of_their_attribute():
  world = facts.World(people=4000, names=(100, 100), choices=(2, 16))
  values = np.asarray(facts.sample(jax.random.key(1), world)[0].values) - 202
  for attribute, n in enumerate(world.choices):
    counts = np.bincount(values[:, attribute], minlength=n)
    assert len(counts) == n and abs(counts / 4000 * n - 1).max() < 0.35
  assert world.bits == 4000 * 5 and world.facts == 8000 and world.vocab == 200 + 2 + 16


def test_every_fact_is_asked_once(both):
  ids, answers = facts.questions(both[0], np.arange(90), WORLD)
  assert ids.shape == (90, 4) and ids.max() < WORLD.vocab
  asked = {
    tuple(map(int, question)): int(answer) for question, answer in zip(ids, answers, strict=True)
  }
  assert len(asked) == 90
  for name, values in zip(*(np.asarray(a) for a in (both[0].names, both[0].values)), strict=True):
    for attribute, value in enumerate(values):
      assert asked[*map(int, name), 17 + attribute] == value
      assert 20 <= value < 20 + WORLD.choices[attribute]


def lookup(people: int, known: int, bits: int):
  """Nats and hits of a table of the first `bits` bits of each of 8, of the first `known` people."""
  nats = np.full((people, 3), 8 * np.log(2))
  nats[:known] = (8 - bits) * np.log(2)
  right = np.zeros((people, 3), bool)
  right[:known] = bits == 8
  return nats, right


def test_a_lookup_table_measures_its_bits():
  for bits in (0, 3, 8):
    nats, _ = lookup(50, 50, bits)
    assert facts.bits_by_loss(nats, (256,) * 3) == pytest.approx(50 * 3 * bits, abs=1e-6)
  _, right = lookup(50, 50, 8)
  assert facts.bits_by_accuracy(right, (256,) * 3) == pytest.approx((1200, 1200))


def test_twice_the_people_at_capacity_leave_the_bits_and_halve_the_accuracy():
  sizes = (256,) * 3
  once, twice = lookup(50, 50, 8), lookup(100, 50, 8)
  assert facts.bits_by_loss(twice[0], sizes) == pytest.approx(facts.bits_by_loss(once[0], sizes))
  assert twice[1].mean() == once[1].mean() / 2
  estimate, bound = facts.bits_by_accuracy(twice[1], sizes)
  assert bound < estimate == pytest.approx(1200, rel=5e-3)


def test_noise_is_no_knowledge():
  """A model that guesses, some answers well and some badly: nothing, by either estimator."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(4000, 2, 16))
  nats = np.log(np.exp(logits).sum(-1)) - logits[..., 0]  # the answer is 0
  assert facts.bits_by_loss(nats, (16, 16)) == 0
  assert np.maximum(4 - nats / np.log(2), 0).sum() > 1000  # clipped fact by fact it would be
  right = logits.argmax(-1) == 0
  estimate, bound = facts.bits_by_accuracy(right, (16, 16))
  assert estimate < 0.01 * 4000 * 8 and bound < 0.01 * 4000 * 8


def test_a_prior_replaces_even_values():
  """What the values' own frequencies tell is not held; a floor for each attribute, not in all."""
  nats = np.full((50, 2), 2 * np.log(2))
  assert facts.bits_by_loss(nats, (16, 16)) == pytest.approx(200)
  assert facts.bits_by_loss(nats, (16, 16), prior=(2.5, 1.0)) == pytest.approx(25)
  with pytest.raises(ValueError, match=r"prior has shape \[3\]; it must be \[2\]"):
    facts.bits_by_loss(nats, (16, 16), prior=(1, 2, 3))


def test_names_count_beside_values():
  n, every = 64, 1024
  known, values = np.full(n, np.log(n)), np.zeros((n, 2))  # knows which names exist, and all values
  assert facts.bits_with_names(known, values, (4, 16), every) == pytest.approx(n * (4 + 6))
  blind = np.full(n, np.log(every) + 1), np.full((n, 2), 9.0)
  assert facts.bits_with_names(*blind, (4, 16), every) == 0
  with pytest.raises(ValueError, match=r"names have shape \[64, 1\]"):
    facts.bits_with_names(known[:, None], values, (4, 16), every)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match=r"need 60 names; names=\(5, 5\) gives 25"):
    facts.World(people=30, names=(5, 5))
  with pytest.raises(ValueError, match="choices >= 2"):
    facts.World(choices=(1, 4))
  with pytest.raises(ValueError, match=r"\[3\]; it must be \[N, 3\]"):
    facts.bits_by_loss(np.zeros(3), (2, 2, 2))
