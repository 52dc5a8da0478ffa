"""Two-hop stories against a reader that follows them one statement at a time."""

import jax
import numpy as np
import pytest

from memjax.tasks import two_hop

sample = jax.jit(two_hop.sample, static_argnums=(1, 2), static_argnames=("length", "hops"))
WORLD = two_hop.World(actors=2, objects=3, rooms=4)


def follow(statements, question):
  """The room's id that answers a question, from the statements alone."""
  room, taker = {}, {}
  for actor, told in statements:
    (room if told > 5 else taker).__setitem__(
      actor if told > 5 else told, told if told > 5 else actor
    )
  return room[question[0] if question[0] <= 2 else taker[question[0]]]


@pytest.mark.parametrize("hops", [1, 2])
def test_answers_follow_from_the_statements(hops):
  stories = sample(jax.random.key(0), 200, WORLD, length=7, hops=hops)
  statements, question, answer, facts = (np.asarray(a) for a in jax.tree.leaves(stories))
  expected = [follow(s, q) for s, q in zip(statements, question, strict=True)]
  np.testing.assert_array_equal(answer, expected)
  assert set(answer) == {6, 7, 8, 9} and WORLD.vocab == 10
  asked = {1, 2} if hops == 1 else {3, 4, 5}
  assert set(question[:, 0]) == asked and (question[:, 1] == 0).all()
  for s, q, a, places in zip(statements, question, answer, facts, strict=True):
    told = list(s[places])
    assert q[0] == told[0][1] if hops == 2 else q[0] == told[0][0]
    assert told[-1][0] == told[0][0] and told[-1][1] == a


def test_too_short_a_story_is_refused():
  with pytest.raises(ValueError, match="length=2 must exceed actors=2"):
    two_hop.sample(jax.random.key(0), 1, WORLD, length=2)


def test_answers_follow_from_the_triples():
  stories = jax.jit(two_hop.sample_triples, static_argnums=(1, 2))(jax.random.key(0), 200, WORLD)
  keys, values, question, answer = (np.asarray(a) for a in jax.tree.leaves(stories))
  orders = set()
  for k, v, q, a in zip(keys, values, question, answer, strict=True):
    told = {tuple(key): value for key, (value,) in zip(k, v, strict=True)}
    assert sorted(told) == [(1, 11), (2, 11), (3, 10), (4, 10), (5, 10)]
    assert a == told[told[q[0], 10], 11]
    orders.add(tuple(k[:, 0]))
  assert set(answer) == {6, 7, 8, 9} and len(orders) > 50
