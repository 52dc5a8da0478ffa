"""Intervals of scores, against known ones; scores of tasks over bits."""

from typing import Any

import jax
import numpy as np
import pytest

from memjax.tasks import scoring
from memjax.tasks.copying import Copy
from memjax.tasks.task import Batch, acc_by, counts
from memjax.tasks.vectors import costs, majority, score_bits


def test_wilson_intervals_are_the_known_ones():
  # R: prop.test(x, n, correct = FALSE)
  np.testing.assert_allclose(scoring.wilson(8, 10), (0.4901625, 0.9433178), atol=1e-6)
  np.testing.assert_allclose(scoring.wilson(0, 20), (0, 0.1611252), atol=1e-6)
  low, high = scoring.wilson(20, 20)
  assert low == pytest.approx(1 - 0.1611252, abs=1e-6) and high == 1
  with pytest.raises(ValueError, match=r"right=3 must lie in 0\.\.count=2"):
    scoring.wilson(3, 2)


def test_examples_are_drawn_again_not_places():
  # Half of the examples are all wrong: places would give an interval ten times as narrow.
  right, due = np.tile([0, 100], 50), np.full(100, 100)
  low, high = scoring.bootstrap(right, due)
  spread = 1.96 * 0.5 / 100**0.5
  np.testing.assert_allclose([low, high], [0.5 - spread, 0.5 + spread], atol=0.015)
  assert scoring.bootstrap(right, due) == (low, high)
  assert scoring.bootstrap(due, due) == (1, 1)
  with pytest.raises(ValueError, match="due must be positive"):
    scoring.bootstrap([0, 1], [0, 1])
  with pytest.raises(ValueError, match=r"right \[2\] and due \[3\]"):
    scoring.bootstrap([0, 1], [1, 1, 1])
  with pytest.raises(ValueError, match="level=95"):
    scoring.bootstrap([1], [1], level=95)


def test_intervals_hold_what_they_say():
  draw = np.random.default_rng(0)
  inside = 0
  for _ in range(100):
    share = draw.uniform(0.3, 0.9, size=40)
    low, high = scoring.bootstrap(draw.binomial(8, share), np.full(40, 8), resamples=200)
    inside += low <= 0.6 <= high
  assert 87 <= inside <= 100
  assert scoring.above_chance(0.25, 0.25) == 0 and scoring.above_chance(1, 0.25) == 1


def small():
  """Two sequences of three places with two bits; their targets."""
  targets = np.asarray([[[0, 0], [1, 0], [1, 1]], [[0, 0], [0, 1], [0, 0]]], np.float32)
  mask = np.asarray([[False, True, True], [False, True, False]])
  where = {"place": np.asarray([[0, 0, 1], [0, 0, 0]])}
  parts: Any = (np.zeros((2, 3, 1)), targets, mask, np.full(2, 3), where)
  return Batch(*parts), targets


def test_scores_of_bits():
  batch, targets = small()

  @jax.jit
  def judge(logits):
    return score_bits(logits, batch), costs(logits, batch), Copy().loss(logits, batch)

  sure = np.where(targets > 0.5, np.float32(30), np.float32(-30))
  found, cost, _ = judge(sure)
  assert found["acc"] == found["em"] == 1 and found["cost"] < 1e-6 and found["wrong"] == 0
  assert cost.shape == (2,)
  found, cost, nats = judge(np.zeros_like(sure))  # says 0, half sure
  assert found["cost"] == pytest.approx(3) and found["bits"] == pytest.approx(1)
  assert found["acc"] == pytest.approx(2 / 6) and found["em"] == 0 and found["wrong"] == 2
  assert cost.tolist() == pytest.approx([4, 2]) and nats == pytest.approx(np.log(2))
  # One bit of the first row is wrong, at a cost of 30 nats, which the mean over two rows halves.
  wrong = sure.copy()
  wrong[0, 2, 0], wrong[0, 0] = -30, 99
  found, _, _ = judge(wrong)
  assert found["cost"] == pytest.approx(15 / np.log(2)) and found["wrong"] == 0.5
  assert found["em"] == 0.5 and found["acc"] == pytest.approx(5 / 6)


def test_shares_of_bits():
  batch, targets = small()
  said: Any = targets.copy()
  said[0, 2, 0], said[0, 0] = 0, 1
  right, due = jax.jit(counts)(said, batch)
  assert right.tolist() == [3, 2] and due.tolist() == [4, 2]
  assert acc_by(said, batch, "place") == {0: (1.0, 2), 1: (0.5, 1)}


def test_the_commoner_of_fair_bits():
  assert majority(1) == 1 and majority(2) == 0.75 and majority(3) == 0.75
  said = np.random.default_rng(0).integers(0, 2, (20_000, 7)).sum(axis=1)
  assert np.maximum(said, 7 - said).mean() / 7 == pytest.approx(majority(7), abs=0.005)
