"""Engrams: whom they remind of, whom they leave, and how long they live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from memjax.slots import engrams as eng
from memjax.slots.engrams import LONG, NONE, SHORT, WORKING
from memjax.testing.case import jit

E, D = 8, 2


def made(kinds, *, data=None, life=3.0, links=(), born=None):
  """One row of engrams of these kinds, linked as `links = {(i, j): count}` says."""
  kinds = np.array([*kinds, *[NONE] * (E - len(kinds))], np.int8)
  there = kinds != NONE
  values, counts = np.zeros((E, D), np.float32), np.zeros((E, E), np.int32)
  if data is not None:
    values[: len(data), 0] = data
  for (i, j), count in dict(links).items():
    counts[i, j] = counts[j, i] = count
  born = np.arange(1, E + 1) if born is None else np.pad(born, (0, E - len(born)))
  rows = lambda a: jnp.asarray(a)[None]  # noqa: E731
  return eng.Engrams(
    data=rows(values), kind=rows(kinds), life=rows(np.float32(life) * there), counts=rows(counts),
    born=rows((born * there).astype(np.int32)),
  )  # fmt: skip


def at(*values):
  """Items `[1, N, D]` at these places of the first axis."""
  return jnp.asarray(values, jnp.float32)[None, :, None] * jnp.array([1.0, 0.0])[None, None]


def those(reminded):
  """The places reminded in each row, in order."""
  pairs = zip(np.asarray(reminded.index), np.asarray(reminded.seen), strict=True)
  return [sorted(index[seen].tolist()) for index, seen in pairs]


def remind(engrams, items, short=2, long=2, depth=1, key=None):
  return eng.remind(engrams, items, short=short, long=long, depth=depth, key=key)


def reminded(*places):
  index = np.zeros((1, 2), np.int32)
  index[0, : len(places)] = places
  return eng.Reminded(jnp.asarray(index), jnp.arange(2)[None] < len(places))


# Life.


def test_the_worked_example_of_lifespans():
  engrams = eng.add(made([]), at(0.0), 3.0)
  engrams = eng.settle(engrams, reminded(), jnp.zeros((1, 2)), 4)
  assert engrams.life[0, 0] == 2 and engrams.kind[0, 0] == SHORT
  recalled = eng.settle(engrams, reminded(0), jnp.array([[5.0, 7.0]]), 4)
  assert recalled.life[0, 0] == 2 - 1 + 5
  ignored = eng.settle(engrams, reminded(), jnp.array([[5.0, 7.0]]), 4)
  assert ignored.life[0, 0] == 1
  gone = eng.settle(ignored, reminded(), jnp.zeros((1, 2)), 4)
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gone))


def test_reminded_each_step_it_lives_for_ever_and_never_reminded_it_is_forgotten():
  engrams = made([SHORT, SHORT, LONG, LONG], data=[0, 9, 1, 8], links={(0, 2): 1, (1, 3): 1})
  for step in range(20):
    found = remind(engrams, at(0.0), short=1, long=1, depth=0)
    assert those(found) == [[0, 2]]
    engrams = eng.settle(eng.fire(engrams, found), found, jnp.ones((1, 2)), 4)
    alive = np.flatnonzero(engrams.kind[0])
    assert alive.tolist() == ([0, 1, 2, 3] if step < 2 else [0, 2])
  assert engrams.counts[0, 0, 2] == 21 and not engrams.counts[0, 1].any()


def test_the_oldest_short_term_engrams_become_long_term_ones():
  engrams = made([SHORT, WORKING, SHORT, WORKING, LONG], born=[2, 4, 3, 5, 1])
  for capacity, expected in {
    9: [SHORT, SHORT, SHORT, SHORT, LONG],
    3: [LONG, SHORT, SHORT, SHORT, LONG],
    2: [LONG, SHORT, LONG, SHORT, LONG],
    0: [LONG, LONG, LONG, LONG, LONG],
  }.items():
    kind = eng.settle(engrams, reminded(), jnp.zeros((1, 2)), capacity).kind
    np.testing.assert_array_equal(kind[0, :5], expected)


# Links.


def test_counts_are_symmetric_and_grow_by_who_fires_together():
  rng, engrams = np.random.default_rng(0), made([])

  @jit
  def step(engrams, items, gain):
    engrams = eng.add(engrams, items, 2.0)
    found = remind(engrams, items)
    fired = eng.fire(engrams, found)
    return fired, found, jnp.sum(engrams.counts), eng.settle(fired, found, gain, 3)

  for _ in range(12):
    items = rng.standard_normal((1, 2, D)).astype(np.float32)
    fired, found, before, engrams = step(engrams, items, rng.uniform(0, 2, (1, 4)))
    counts, many = np.asarray(fired.counts[0]), int(found.seen.sum()) + 2
    assert counts.sum() - before == many**2
    np.testing.assert_array_equal(counts, counts.T)
    assert (np.diag(counts) >= counts.max(axis=1)).all()
    gone = np.asarray(engrams.kind[0]) == NONE
    assert not np.asarray(engrams.counts[0])[gone].any()
  assert (np.asarray(engrams.kind) == LONG).any()


def test_depth_two_finds_the_end_of_a_chain_and_depth_one_does_not():
  kinds = [SHORT, LONG, LONG, LONG, SHORT]
  chain = made(kinds, data=[0, 5, 6, 0, 9], links={(0, 1): 2, (1, 2): 2, (2, 3): 2})
  for depth, expected in {0: [0, 1], 1: [0, 1, 2], 2: [0, 1, 2, 3]}.items():
    assert those(remind(chain, at(0.1, -0.1), short=1, long=9, depth=depth)) == [expected]
  nearest = remind(chain, at(0.1, -0.1), short=1, long=1, depth=2)
  assert those(nearest) == [[0, 3]]  # of all found


def test_who_is_not_reminded_leads_nowhere():
  links = {(0, 2): 1, (1, 3): 1}
  engrams = made([SHORT, SHORT, LONG, LONG], data=[0, 9, 5, 0], links=links)
  assert those(remind(engrams, at(0.0), short=1, long=2, depth=0)) == [[0, 2]]


def test_what_is_not_there_is_not_reminded():
  alone = made([SHORT, SHORT], data=[3, 4])
  assert those(remind(alone, at(0.0), short=2, long=2)) == [[0, 1]]
  few = made([SHORT, LONG], data=[3, 4])
  assert those(remind(few, at(0.0), short=2, long=3, depth=5)) == [[0, 1]]
  assert those(remind(made([LONG, LONG]), at(0.0))) == [[]]  # no way leads there


def test_ties_go_to_the_oldest_and_of_the_first_step_with_a_key_at_random():
  engrams = made([LONG, LONG, LONG, SHORT], born=[3, 1, 2, 4])
  assert those(remind(engrams, at(0.0), depth=0)) == [[1, 3]]
  assert those(remind(engrams, at(0.0), depth=1)) == [[1, 2, 3]]
  draw = jit(lambda key: remind(engrams, at(0.0), depth=0, key=key))
  found = {tuple(those(draw(jax.random.key(i)))[0]) for i in range(20)}
  assert found == {(0, 3), (1, 3), (2, 3)}


def slow_remind(engrams, items, short, long, depth):
  """The same of one row by loops, from squared distances to every item."""
  kind, born, counts = (np.asarray(a) for a in (engrams.kind, engrams.born, engrams.counts))
  far = np.square(np.asarray(engrams.data)[:, None] - items[None]).sum(axis=2).sum(axis=1)
  near = lambda among, count: sorted(among, key=lambda i: far[i])[:count]  # noqa: E731
  start = near(np.flatnonzero(kind == SHORT), short)
  found, lasts = set(), start
  for _ in range(1 + depth):
    reach = [i for i in np.flatnonzero(kind == LONG) if i not in found]
    if not reach:
      break
    lasts = [max(reach, key=lambda i, last=last: (counts[last, i], -born[i])) for last in lasts]
    found |= set(lasts)
  return sorted([*start, *near(found, long)])


def drawn(rng, rows):
  """Rows of engrams at random."""
  counts = rng.integers(0, 4, (rows, E, E)).astype(np.int32)
  kind = rng.choice([NONE, SHORT, LONG], (rows, E), p=[0.2, 0.3, 0.5]).astype(np.int8)
  order = np.argsort(rng.uniform(size=(rows, E)), axis=1).astype(np.int32) + 1
  data = rng.standard_normal((rows, E, D)).astype(np.float32)
  counts = counts + counts.swapaxes(1, 2)
  return eng.Engrams(*map(jnp.asarray, (data, kind, np.ones_like(data[..., 0]), counts, order)))


def test_every_row_is_reminded_as_by_loops():
  rng = np.random.default_rng(0)
  engrams, items = drawn(rng, 64), rng.standard_normal((64, 3, D)).astype(np.float32)
  for depth in (0, 2):
    found = those(jit(lambda e, i, depth=depth: remind(e, i, 2, 3, depth))(engrams, items))
    for row in range(64):
      one = jax.tree.map(lambda a, row=row: a[row], engrams)
      assert found[row] == slow_remind(one, items[row], 2, 3, depth)
    assert len(set(map(len, found))) > 2


# Room.


def test_new_engrams_take_free_places_and_then_those_of_the_weakest_long_term_ones():
  kinds = [SHORT, NONE, LONG, LONG, LONG, SHORT, SHORT, SHORT]
  engrams = made(kinds, data=range(8), born=[1, 0, 4, 3, 5, 6, 7, 8], links={(2, 4): 1, (3, 4): 1})
  life = jnp.array([[1.0, 0, 2, 2, 5, 1, 1, 1]])
  engrams = dataclasses.replace(engrams, life=life)
  full = eng.add(engrams, at(20.0, 21.0), 9.0)
  np.testing.assert_array_equal(full.data[0, :, 0], [0, 20, 2, 21, 4, 5, 6, 7])  # 3 is older than 2
  np.testing.assert_array_equal(full.kind[0] == WORKING, np.isin(np.arange(E), [1, 3]))
  np.testing.assert_array_equal(full.born[0], [1, 9, 4, 10, 5, 6, 7, 8])
  np.testing.assert_array_equal(full.life[0], [1, 9, 2, 9, 5, 1, 1, 1])
  assert full.counts[0, 2, 4] == 1 and not full.counts[0, 3].any()
