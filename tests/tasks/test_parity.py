"""Parity and access: what a finite machine can, and what the forms differ in."""

import itertools

import numpy as np
import pytest

from memjax.tasks import majority
from memjax.tasks.parity import BIT, BLANK, END, VALUE, Access, Parity
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import first, many


def rows(name):
  batch = first(SMALL[name])
  for ids, due, end in zip(
    batch.inputs.tolist(), batch.targets.tolist(), batch.length, strict=True
  ):
    yield ids[: int(end)], due[: int(end)]


def test_one_bit_of_state_solves_the_direct_form_and_every_bit_counts():
  seen = set()
  for ids, due in rows("parity"):
    seen.add(ids.count(BLANK))
    ids, due = ids[ids.count(BLANK) :], due[ids.count(BLANK) :]
    bits = [i - BIT for i in ids[:-1]]
    assert ids[-1] == END and set(bits) <= {0, 1} and set(due[:-1]) <= {-1}
    assert due[-1] == BIT + sum(bits) % 2  # so any one flipped flips it
  assert seen == {0, 1, 2, 3}


def test_a_machine_of_two_states_solves_the_interleaved_form():
  for ids, due in rows("parity-interleaved"):
    state = 0
    for i, (token, target) in enumerate(zip(ids, due, strict=True)):
      if i % 2 == 0:
        state ^= token - BIT
        assert target == BIT + state
      else:
        assert token == BIT + state and target == -1


def test_cumulative_parity_is_due_at_every_bit():
  for ids, due in rows("parity-cumulative"):
    bits, due = ids[ids.count(BLANK) :], due[ids.count(BLANK) :]
    assert due == [BIT + sum(b - BIT for b in bits[: i + 1]) % 2 for i in range(len(bits))]


def test_majority_is_the_commonest_and_of_equal_ones_the_lowest():
  for name in ("majority", "majority-of-many"):
    batch, ties = first(SMALL[name]), 0
    for ids, due, lead in zip(
      batch.inputs.tolist(), batch.targets.tolist(), batch.meta["lead"][:, -1].tolist(), strict=True
    ):
      counts = sorted(((ids.count(i), -i) for i in set(ids[:-1])), reverse=True)
      assert ids[-1] == majority.END and due[-1] == -counts[0][1]
      assert lead == counts[0][0] - (counts[1][0] if len(counts) > 1 else 0)
      ties += lead == 0
    assert (ties > 0) == (name != "majority")  # nine bits have none


def test_the_floor_of_majority_is_one_of_the_symbols_that_came():
  """By counting all rows of three symbols."""
  task = majority.Majority(length=3, symbols=3)
  rows = itertools.product(range(3), repeat=3)
  assert task.floor == pytest.approx(np.mean([1 / len(set(row)) for row in rows]))


@pytest.mark.parametrize("name", ["parity-scratchpad", "parity-mnemonic"])
def test_steps_are_the_parities_of_the_bits_before(name):
  for ids, due in rows(name):
    ids, due = ids[ids.count(BLANK) :], due[ids.count(BLANK) :]
    n = ids.index(END)
    told, asked, owed = ids[:n], ids[n + 1 :], due[n:]
    if name == "parity-mnemonic":
      assert asked[::2] == told[::2] and len(set(told[::2])) == n // 2 and min(told[::2]) >= BIT + 2
      told, asked, owed = told[1::2], asked[1::2], owed[1::2]
    parities = (np.cumsum([b - BIT for b in told]) % 2 + BIT).tolist()
    assert owed == parities and asked == parities[:-1]


def test_shared_names_are_the_numbers_in_disguise():
  for ids, due in rows("access-name"):
    n = ids.index(END)
    assert ids[:n:2] == list(range(ids[0], ids[0] + n // 2)) == sorted(ids[:n:2])
    assert due[-1] == ids[2 * (ids[-1] - ids[0]) + 1]


def test_the_floor_of_access_is_any_value_told():
  task = SMALL["access"]
  batch = many(task, 2000)
  ids, due = batch.inputs, batch.targets.max(axis=1)
  last = ids[np.arange(len(ids)), (ids == END).argmax(axis=1) - 1]
  deviation = (task.floor / len(ids)) ** 0.5
  assert abs(np.mean(last == due) - task.floor) < 4 * deviation
  assert np.unique(due - VALUE).tolist() == list(range(task.values))


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Parity(form="long"), "form='long' is not one of"),
    (lambda: Parity(most=9, pool=8), "pool=8 must be at least most=9"),
    (lambda: Parity(shift=-1), "shift=-1 must be at least 0"),
    (lambda: Access(by="name", names="new"), "names='new' is not one of"),
    (lambda: Access(digits=1), "digits=1 must be able to write most=20"),
    (lambda: Access(values=1), "values=1 at least 2"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
