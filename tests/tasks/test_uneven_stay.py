"""Stays and questions: what is shown and asked, and what each strategy of forgetting keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.slots import ledger
from memjax.tasks import uneven_stay

ROWS, STAYS = 200, (2, 1, 3, 9)
sample = jax.jit(uneven_stay.sample, static_argnums=(1, 2))


def test_every_place_is_visited_once_for_its_stay():
  rows = jax.device_get(sample(jax.random.key(0), ROWS, STAYS))
  assert rows.thing.shape == rows.place.shape == (ROWS, 15)
  np.testing.assert_array_equal(np.sort(rows.place[:, [0, 2, 3, 6]], axis=1), [range(4)] * ROWS)
  starts = np.repeat([0, 2, 3, 6], STAYS)
  for a in (rows.place, rows.thing):
    np.testing.assert_array_equal(a, a[:, starts])
  for row in range(ROWS):
    seen = np.flatnonzero(rows.place[row] == rows.asked[row])
    assert rows.answer[row] == rows.thing[row, seen[-1]] and rows.since[row] == 14 - seen[-1]
  assert set(rows.asked) == {0, 1, 2, 3} and set(rows.thing.ravel()) == {0, 1, 2, 3}
  with pytest.raises(ValueError, match=r"stays=\[2, 0\]"):
    uneven_stay.sample(jax.random.key(0), 1, (2, 0))


@jax.jit
def walk(places, policy, group):
  start, policy = ledger.empty(ROWS, 8), jnp.full(places.shape, policy, jnp.int32)
  return ledger.walk(start, places, policy, jnp.ones(places.shape, bool), groups=(group, 4))


def kept(places, policy):
  """Which frames `[B, T]` a memory of 8 still has; a share of it is 2."""
  found = walk(places, ledger.POLICIES.index(policy), jnp.arange(5))
  length = places.shape[1]
  times = np.asarray(found.after.ledger.times)
  return (times[:, :, None] == np.arange(length)).any(axis=1)


def test_a_long_last_stay_fills_one_queue_but_not_those_of_other_places():
  rows = sample(jax.random.key(0), ROWS, STAYS)
  there = np.asarray(rows.place == rows.asked[:, None])
  of_each, of_one = ((kept(rows.place, p) & there).any(axis=1) for p in ("place", "fifo"))
  assert of_each.all()
  np.testing.assert_array_equal(of_one, np.asarray(rows.since) < 8)
  assert 0.1 < of_one.mean() < 0.4  # the last place alone


def test_each_task_has_one_right_strategy():
  rows = jax.jit(uneven_stay.sample_tasks, static_argnums=1)(jax.random.key(0), ROWS)
  host = jax.device_get(rows)
  np.testing.assert_array_equal(np.sort(host.cue, axis=1), [np.arange(uneven_stay.FRAMES)] * ROWS)
  for name in ("cue", "thing"):
    asked = getattr(host, {"cue": "asked", "thing": "answer"}[name])
    np.testing.assert_array_equal(getattr(host, name)[np.arange(ROWS), host.frame], asked)
  found = np.zeros((4, 4))
  for index, policy in enumerate(ledger.POLICIES[:4]):
    there = kept(rows.place, policy)[np.arange(ROWS), host.frame]
    found[:, index] = there.reshape(-1, 4).mean(axis=0)
  np.testing.assert_array_equal(found.diagonal(), 1)
  assert (found[~np.eye(4, dtype=bool)] < 0.85).all(), found
