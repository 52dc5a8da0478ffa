"""Strategies of forgetting against streams worked out by hand and the authors' simulation."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.slots import ledger
from memjax.slots.ledger import POLICIES

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sat.npz"


@functools.partial(jax.jit, static_argnames=("capacity", "count"))
def walk(places, policy, stored, reset, group, *, capacity, count):
  start = ledger.empty(places.shape[0], capacity)
  return ledger.walk(start, places, policy, stored, groups=(group, count), reset=reset)


def come(places, policy, capacity, count, *, stored=None, reset=None, group=None):
  places = jnp.asarray(places, jnp.int32)
  stored = jnp.ones(places.shape, bool) if stored is None else jnp.asarray(stored)
  reset = jnp.zeros(places.shape, bool) if reset is None else jnp.asarray(reset)
  policy = jnp.broadcast_to(jnp.asarray(policy, jnp.int32), places.shape)
  group = jnp.arange(count) if group is None else jnp.asarray(group)
  groups = {"capacity": capacity, "count": int(group.max()) + 1}
  return walk(places, policy, stored, reset, group, **groups)


def kept(found):
  """The times of the entries of each row, sorted."""
  return [sorted(t for t in row if t >= 0) for row in np.asarray(found.times).tolist()]


A, B, C, D = 0, 1, 2, 3


def test_streams_worked_out_by_hand():
  known = [(name, [A, A, A, B, C], times) for name, times in {
    "fifo": [2, 3, 4],
    "lifo": [0, 1, 2],
    "lvfo": [1, 2, 4],  # of A, the only place there is; then B
    "mvfo": [2, 3, 4],  # the oldest of A, twice
    "place": [2, 3, 4],  # A makes room for A
    "none": [],
  }.items()]  # fmt: skip
  known += [("lvfo", [B, C, A, D, C], [1, 3, 4])]  # of equals A, then B
  known += [("mvfo", [C, B, A, D, B], [0, 3, 4])]
  names, places, times = zip(*known, strict=True)
  policy = [[(*POLICIES, "none").index(name)] for name in names]
  found = come(places, policy, 3, 4)
  after, rows = found.after.ledger, np.arange(len(known))[:, None]
  assert kept(after) == list(times)
  filled, there = np.asarray(after.filled), np.asarray(places)[rows, after.times]
  np.testing.assert_array_equal(np.asarray(after.places)[filled], there[filled])
  np.testing.assert_array_equal(np.asarray(found.after.source)[filled] - 3, after.times[filled])
  np.testing.assert_array_equal(found.slots[1], [0, 1, 2, 3, 3])  # 3: it is not stored
  np.testing.assert_array_equal(found.slots[4], [0, 0, 0, 1, 2])
  np.testing.assert_array_equal(after.clock, 5)


@pytest.mark.golden
@pytest.mark.parametrize("policy", ["fifo", "lifo", "lvfo", "mvfo"])
def test_long_streams_keep_what_the_authors_keep(policy):
  golden = np.load(GOLDEN)
  found = come(golden["streams"], POLICIES.index(policy), 8, 5)
  np.testing.assert_array_equal(kept(found.after.ledger), golden[f"kept|{policy}"])


def test_groups_have_equal_shares_and_keep_their_last():
  places, group = np.random.default_rng(0).integers(0, 4, (4, 12)), np.asarray([0, 1, 1, 0])
  found = come(places, POLICIES.index("place"), 4, 4, group=group).after.ledger
  for row, times in zip(places, kept(found), strict=True):
    expected = [np.flatnonzero(group[row] == g)[-2:] for g in (0, 1)]
    np.testing.assert_array_equal(times, np.sort(np.concatenate(expected)))


def test_what_an_item_sees_is_what_was_stored_before_it():
  rng = np.random.default_rng(1)
  places, policy = rng.integers(0, 4, (4, 12)), rng.integers(0, 5, (4, 12))
  options = {"capacity": 4, "count": 4, "group": np.asarray([0, 1, 1, 0])}
  stored, reset = rng.random((4, 12)) < 0.7, rng.random((4, 12)) < 0.2
  found = come(places, policy, **options, stored=stored, reset=reset)
  for t in (3, 8, 11):  # the items from the last reset on, alone
    for row in range(4):
      first = np.flatnonzero(reset[row, : t + 1])
      first = first[-1] if len(first) else 0
      alone = [a[row : row + 1, first:t] for a in (places, policy, stored)]
      if first == t:
        assert (found.before.ledger.times[row, t] < 0).all()
        continue
      pad = [np.tile(np.pad(a, ((0, 0), (0, 12 - a.shape[1]))), (4, 1)) for a in alone]
      other = come(pad[0], pad[1], **options, stored=pad[2]).after
      np.testing.assert_array_equal(found.before.ledger.times[row, t], other.ledger.times[0])
      filled = np.asarray(other.ledger.filled[0])
      source = np.asarray(found.before.source[row, t]) - first
      np.testing.assert_array_equal(source[filled], np.asarray(other.source[0])[filled])
