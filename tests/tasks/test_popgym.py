"""Games of POPGym: decks, what is due, and the returns of players that remember nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.popgym import Autoencode, CountRecall, RepeatFirst, RepeatPrevious, returns
from memjax.tasks.task import TEST

ROWS = 200
GAMES = {
  "first": RepeatFirst(),
  "previous": RepeatPrevious(k=3),
  "autoencode": Autoencode(),
  "count": CountRecall(of="suits"),
}


@functools.cache
def made():
  """200 episodes of each game as numpy arrays."""
  run = lambda: {k: game.sample(0, TEST, jnp.arange(ROWS)) for k, game in GAMES.items()}  # noqa: E731
  return jax.tree.map(np.asarray, jax.jit(run)())


def test_right_actions_return_one_and_wrong_ones_minus_one():
  for batch in made().values():
    np.testing.assert_array_equal(returns(batch.targets, batch), 1)
    np.testing.assert_array_equal(returns(batch.targets + 1, batch), -1)
  assert {k: int(b.mask.sum(axis=1)[0]) for k, b in made().items()} == {
    "first": 51, "previous": 52 - 3, "autoencode": 52, "count": 51,
  }  # fmt: skip
  assert RepeatFirst(decks=16).cards - 1 == 831
  assert [Autoencode(decks=d).state_bits for d in (1, 2, 3)] == [104, 208, 312]
  assert RepeatPrevious(decks=3, k=64).state_bits == 126


def test_decks_hold_thirteen_of_a_suit():
  batches = made()
  seen = batches["autoencode"].inputs[:, :52] % 4
  assert all((np.bincount(row) == 13).all() for row in seen)
  assert (batches["autoencode"].inputs[:, :51] >= 4).all()
  assert (batches["autoencode"].inputs[:, 51:] < 4).all()
  assert (batches["autoencode"].inputs[:, 52:] == 0).all()
  np.testing.assert_array_equal(batches["autoencode"].targets[:, 51:], seen[:, ::-1])
  for part in (batches["count"].inputs // 4, batches["count"].inputs % 4, batches["first"].inputs):
    assert all(sorted(np.bincount(row)) == [12, 13, 13, 13] for row in part)
  values, queries = batches["count"].inputs // 4, batches["count"].inputs % 4
  assert abs(np.corrcoef(values.ravel(), queries.ravel())[0, 1]) < 0.05


def test_one_action_always_returns_what_is_expected():
  batches = made()
  # In a whole deck it is right 13 times in 52, in each episode.
  always = returns(jnp.full((ROWS, 103), 2), batches["autoencode"])
  np.testing.assert_allclose(always, 2 / 4 - 1, rtol=1e-6)
  first = returns(jnp.full((ROWS, 51), 2), batches["first"])
  np.testing.assert_array_equal(first, np.where(batches["first"].inputs[:, 0] == 2, 1, -1))
  for name, width in (("first", 51), ("previous", 51)):
    found = np.asarray(returns(jnp.full((ROWS, width), 1), batches[name]))
    assert found.mean() == pytest.approx(-0.5, abs=float(4 * found.std() / ROWS**0.5))


def test_players_without_memory_get_the_floor():
  batches = made()
  share = lambda said, batch: (said == batch.targets)[batch.mask].mean()  # noqa: E731
  first, previous, auto, count = (batches[name] for name in GAMES)
  other = (previous.inputs + 1) % 4
  assert share(other, previous) == pytest.approx(GAMES["previous"].floor, abs=0.01)
  other = (first.inputs + 1) % 4
  assert share(other, first) == pytest.approx(50 / 51 * 13 / 51, abs=0.015)
  assert GAMES["first"].floor == pytest.approx((1 + 50 * 12 / 51) / 51)
  assert share(first.inputs, first) == pytest.approx(GAMES["first"].floor, abs=0.015)
  assert share(auto.inputs % 4, auto) == pytest.approx(GAMES["autoencode"].floor, abs=0.005)
  likeliest = [np.bincount(column).argmax() for column in count.targets.T]
  # Chosen after the fact, so a little better than what the law's own choice gets.
  assert GAMES["count"].floor - 0.01 < share(likeliest, count) < GAMES["count"].floor + 0.05


def test_cards_drawn_with_replacement_tell_nothing_of_the_rest():
  game = Autoencode(iid=True)
  batch = jax.jit(lambda: game.sample(0, TEST, jnp.arange(ROWS)))()
  suits = np.asarray(batch.inputs)[:, :52] % 4
  numbers = np.stack([np.bincount(row, minlength=4) for row in suits])
  assert numbers.var() == pytest.approx(52 * 3 / 16, rel=0.2)
  assert CountRecall(iid=True).outputs_size == 53 and CountRecall().outputs_size == 27
  assert CountRecall(decks=4, of="ranks").inputs_size == 169
  assert CountRecall(iid=True).floor < 0.3 and RepeatPrevious(iid=True).floor == 0.25


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"k=52 must lie in 2\.\.51"):
    RepeatPrevious(k=52)
  with pytest.raises(ValueError, match="of='jokers' is not one of"):
    CountRecall(of="jokers")
