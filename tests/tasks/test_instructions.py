"""Instructions in sessions, read again from their tokens: how many, how often renewed, what of them
is asked; and the reader of the floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.instructions import Instructions
from memjax.tasks.task import TEST

TASK = Instructions(sessions=10, queries=5)
COUNT = 500


@pytest.fixture(scope="module")
def batch():
  return jax.tree.map(np.asarray, jax.jit(lambda i: TASK.sample(0, TEST, i))(jnp.arange(COUNT)))


def sessions(tokens):
  """Instructions (slot, value) of each session, from its tokens."""
  starts = [*np.flatnonzero(tokens == 1), np.flatnonzero(tokens == 3)[0]]
  for start, end in zip(starts[:-1], starts[1:], strict=True):
    at = start + np.flatnonzero(tokens[start:end] == 2)
    yield int(end - start), [(int(tokens[i + 1]), int(tokens[i + 2])) for i in at]


def test_sessions_are_of_the_paper_s_sizes(batch):
  instructive, sizes, renewed, told, kept = [], [], 0, 0, []
  for row, (tokens, length) in enumerate(zip(batch.inputs, batch.length, strict=True)):
    values, since, times, active = {}, {}, {}, 0
    for number, (size, said) in enumerate(sessions(tokens[:length])):
      sizes.append(size)
      active += bool(said)
      assert len(said) <= 2 and len({slot for slot, _ in said}) == len(said)
      for slot, value in said:
        assert values.get(slot) != value  # another one than its last
        renewed, told = renewed + (slot in values), told + 1
        values[slot], since[slot], times[slot] = value, number, times.get(slot, 0) + 1
    instructive.append(active)
    kept.append(len(values))
    for at in np.flatnonzero(batch.mask[row]):
      slot = int(batch.inputs[row, at])
      assert batch.targets[row, at] == values.get(slot, 4)
      assert batch.meta["updates"][row, at] == times.get(slot, 0)
      assert batch.meta["age"][row, at] == (9 - since[slot] if slot in since else 0)
  assert len(sizes) == 10 * COUNT and min(sizes) == 10 and max(sizes) == 40
  assert set(instructive) == {5, 6, 7}
  assert abs(told / COUNT - 9) < 0.3 and 0.35 < renewed / told < 0.5  # half, but for the first ones
  assert abs(np.mean(kept) - 5.1) < 0.4


def test_no_answer_is_likelier_than_another_and_the_floor_is_the_latest_value_s(batch):
  due = batch.targets[batch.mask].reshape(COUNT, 5)
  shares = np.bincount(np.where(due == 4, 0, due - 5 - 51 + 1).reshape(-1), minlength=9) / due.size
  np.testing.assert_allclose(shares, 1 / 9, atol=3.5 * (0.1 / due.size) ** 0.5)
  latest = [list(said for _, s in sessions(row[:n]) for said in s)[-1][1]
            for row, n in zip(batch.inputs, batch.length, strict=True)]  # fmt: skip
  assert abs(np.mean(due == np.asarray(latest)[:, None]) - TASK.floor) < 0.05


@pytest.mark.parametrize(
  ("settings", "match"),
  [({"size": (6, 40)}, "must be 7 <= least"), ({"slots": 2}, "slots=2 must be at least 3")],
)
def test_what_does_not_fit_is_refused(settings, match):
  with pytest.raises(ValueError, match=match):
    Instructions(**settings)
