"""What every generated task owes: an oracle that sees the inputs alone is always right, or as sure
as can be where they do not decide the answer; an example depends on seed, split and index alone,
and its first ones never change."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import task as tasks
from memjax.tasks import vectors
from memjax.tasks.induction import Induction
from memjax.tasks.interference import Interference
from memjax.tasks.mqar import MQAR
from memjax.tasks.needle import Needle
from memjax.tasks.selective_copying import SelectiveCopying
from memjax.tasks.task import IGNORE, TEST, TRAIN
from memjax.tasks.tmaze import DOWN, UP, TMaze, success
from tests.registry.tasks import SMALL

GOLDEN = (
  pathlib.Path(__file__).parents[1] / "golden/tasks"
)  # `python -m` this module writes new ones
FIRST = jnp.arange(50)


@functools.cache
def compiled(task):
  """Examples, what the oracle makes of them, and what it makes of them with the book closed."""

  def run(split, index):
    batch = task.sample(0, split, index)
    shut = task.closed_book(batch)
    return batch, task.solve(batch), task.solve(shut), shut.inputs

  return jax.jit(run)


def first(task, split=TRAIN, index=FIRST):
  return compiled(task)(split, index)[0]


def many(task, count):
  """The first examples, as numpy arrays, by the program that makes 50 of them."""
  made = [first(task, index=i + FIRST) for i in range(0, count, len(FIRST))]
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *made)


def predictions(task, batch):
  return jax.jit(task.solve)(batch)


def the_solver_is_right(task, batch, solved):
  """Its answers are the targets; or probabilities that hold, and cost less than not to know."""
  if task.certain:
    np.testing.assert_array_equal(solved, batch.targets)
    assert all(v == 1 for v in tasks.scored(solved, batch).values())
    return
  due = np.asarray(batch.mask)
  chances, targets = np.asarray(solved)[due], np.asarray(batch.targets)[due]
  assert 0 < chances.min() and chances.max() < 1
  off, spread = np.sum(targets - chances), np.sum(chances * (1 - chances)) ** 0.5
  assert abs(off) < 4 * spread
  assert vectors.costs(vectors.logits_of(solved), batch).sum() < chances.size


def the_questions_alone_are_kept(task, batch, questions):
  """With the book closed: all tasks lose something, and those without a way of their own keep what
  stands where something is due, and nothing else."""
  inputs, due = np.asarray(batch.inputs), np.asarray(batch.mask)
  assert (questions != inputs).any()
  if type(task).closed_book is tasks.Task.closed_book:
    np.testing.assert_array_equal(questions[due], inputs[due])
    assert not questions[~due].any()


def forms_are_as_told(task, batch):
  shape = batch.mask.shape
  if task.input_form == "ids":
    assert batch.inputs.dtype == jnp.int32 and batch.inputs.shape == shape
    assert 0 <= int(batch.inputs.min()) and int(batch.inputs.max()) < task.inputs_size
  else:
    assert batch.inputs.dtype == jnp.float32
    assert batch.inputs.shape == (*shape, task.inputs_size)
  targets = np.asarray(batch.targets)
  if task.output_form == "classes":
    assert batch.targets.dtype == jnp.int32 and targets.shape == shape
    assert IGNORE <= targets.min() and targets.max() < task.outputs_size
    assert (targets[np.asarray(batch.mask)] != IGNORE).all()
    if task.input_form == "ids":
      np.testing.assert_array_equal(batch.mask, targets != IGNORE)
  else:
    assert batch.targets.dtype == jnp.float32 and targets.shape == (*shape, task.outputs_size)
    assert set(np.unique(targets)) <= {0, 1} and not targets[~np.asarray(batch.mask)].any()
  ends = np.asarray(batch.length)[:, None]
  assert (1 <= ends).all() and (ends <= shape[1]).all()
  after = np.arange(shape[1]) >= ends
  assert not np.asarray(batch.mask)[after].any() and not np.asarray(batch.inputs)[after].any()


@pytest.mark.parametrize("name", SMALL)
def test_a_task_keeps_its_promises(name):
  task = SMALL[name]
  batch, solved, shut, questions = compiled(task)(TRAIN, FIRST)
  the_questions_alone_are_kept(task, batch, np.asarray(questions))
  the_solver_is_right(task, batch, solved)
  forms_are_as_told(task, batch)
  assert bool(jnp.all(batch.mask.any(axis=1)))
  assert 0 < task.chance < 1 and task.floor < 1 and task.state_bits > 0
  most = task.chance + 0.1 if task.output_form == "bits" else max(3 * task.chance, 0.6)
  assert float(tasks.scored(jnp.round(shut), batch)["acc"]) < most

  moved = first(task, index=FIRST[::-1])  # wherever in a batch, whatever else is in it
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), moved, batch)
  other = first(task, split=TEST)
  assert not np.array_equal(other.inputs, batch.inputs)
  assert len(np.unique(np.asarray(batch.inputs), axis=0)) > 25

  golden = json.loads((GOLDEN / f"{name}.json").read_text())
  assert golden == {"inputs": batch.inputs[:2].tolist(), "targets": batch.targets[:2].tolist()}


def test_numbers_of_tasks_are_their_own():
  kinds = {type(task) for task in SMALL.values()}
  assert len({kind.number for kind in kinds}) == len(kinds)


def test_an_example_does_not_depend_on_how_many_are_made():
  task = SMALL["mqar-updates"]
  few = first(task, index=jnp.asarray([7, 3]))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b[np.asarray([7, 3])]), few, first(task)
  )


def test_updated_keys_have_two_values_and_the_last_counts():
  batch = first(SMALL["mqar-updates"])
  keys, values = np.asarray(batch.inputs[:, :12:2]), np.asarray(batch.inputs[:, 1:12:2])
  for row in range(len(keys)):
    told = dict(zip(keys[row], values[row], strict=True))
    assert len(told) == 4 and len(set(values[row])) == 6
    places = np.flatnonzero(batch.mask[row])
    assert all(told[int(batch.inputs[row, p])] == int(batch.targets[row, p]) for p in places)


def test_queries_crowd_behind_the_pairs_unless_power_is_one():
  place = lambda power: np.mean([  # noqa: E731
    np.flatnonzero(row).mean() for row in first(MQAR(4, 256, 64, power=power)).mask
  ])  # fmt: skip
  assert place(0.01) < 80 < 120 < place(1.0)


def test_safe_fill_holds_no_key_of_the_example():
  task = MQAR(pairs=8, length=64, vocab=64)
  batch = first(task)
  for ids, mask in zip(np.asarray(batch.inputs), np.asarray(batch.mask), strict=True):
    fill = ids[16:][~mask[16:]]
    assert not set(fill) & set(ids[:16:2]) and len(set(fill)) > 15
  official = first(dataclasses.replace(task, filler="official"))
  solved = predictions(task, official)
  assert bool(jnp.all((solved == official.targets) | ~official.mask))


def test_no_key_follows_itself_and_each_is_told_as_often():
  task = SMALL["interference"]
  batch = first(task)
  owners = np.asarray(batch.inputs[:, :24:2])
  assert (owners[:, 1:] != owners[:, :-1]).all()
  assert all((np.bincount(row - 2) == 4).all() for row in owners)
  together = np.asarray(first(SMALL["interference-by-key"]).inputs[:, :18:2])
  assert ((together[:, 1:] != together[:, :-1]).sum(axis=1) == 2).all()


def test_wrong_answers_are_told_apart_by_where_they_stood():
  task = SMALL["interference"]
  batch = first(task)
  early = dataclasses.replace(task, asked="first")
  solved = predictions(early, batch)
  kinds = np.asarray(task.history(solved, batch))
  assert (kinds[np.asarray(batch.mask)] == 0).all() and (kinds[~np.asarray(batch.mask)] == -3).all()
  assert (np.asarray(task.history(batch.targets, batch))[np.asarray(batch.mask)] == 3).all()
  # The first answer of the row, given to the other questions as well: another key's value.
  one = jnp.broadcast_to(solved[:, 25:26], solved.shape)
  kinds = np.asarray(task.history(one, batch))
  assert (kinds[:, 25] == 0).all() and (kinds[:, 27] == -1).all()
  assert (np.asarray(task.history(jnp.zeros_like(solved), batch))[:, 25] == -2).all()


@pytest.mark.parametrize(("depth", "place"), [(0, 0), (50, 12), (100, 24)])
def test_a_needle_stands_at_its_depth(depth, place):
  task = Needle(length=31, digits=2, depth=depth, keys=8, values=9, vocab=30)
  batch = first(task)
  np.testing.assert_array_equal(np.asarray(batch.inputs == 1).argmax(axis=1), place)
  depths = np.asarray(batch.meta["depth"])[np.asarray(batch.mask)]
  np.testing.assert_array_equal(depths, depth)


def test_depths_are_even():
  batch = first(Needle(length=104, keys=8, values=9, vocab=30), index=jnp.arange(2000))
  depth = np.asarray(batch.meta["depth"])[np.asarray(batch.mask)]
  counts = np.bincount(np.minimum(depth // 20, 4), minlength=5)
  assert np.abs(counts - 400).max() < 5 * 20


def test_hints_are_balanced_and_corridors_come_in_any_parts():
  task = TMaze(length=1000)
  whole = first(task, index=jnp.arange(6))
  hints = np.asarray(whole.meta["hint"])
  assert (hints[::2] == -hints[1::2]).all()
  assert set(np.unique(np.asarray(whole.inputs[..., 3]))) == {-1, 0, 1}
  part = jax.jit(lambda start: task.chunk(0, TRAIN, jnp.arange(6), start, 90))(910)
  np.testing.assert_array_equal(part.inputs, whole.inputs[:, 910:])
  np.testing.assert_array_equal(part.targets, whole.targets[:, 910:])
  np.testing.assert_array_equal(whole.targets[:, -1], np.where(hints > 0, UP, DOWN))
  assert success(whole.targets, whole).all()
  wrong = whole.targets.at[2, 5].set(UP).at[3, -1].set(0)
  np.testing.assert_array_equal(success(wrong, whole), [1, 1, 0, 0, 1, 1])
  with pytest.raises(NotImplementedError, match="in pairs"):
    task.example(jax.random.key(0))


def test_scores_of_logits():
  task = SMALL["mqar"]
  batch = first(task)
  sure = 50 * jax.nn.one_hot(batch.targets, task.vocab)
  found = tasks.score(sure, batch)
  assert found["acc"] == 1 and found["em"] == 1 and found["bits"] < 1e-6
  found = tasks.score(jnp.zeros_like(sure), batch)
  assert found["bits"] == pytest.approx(5, abs=1e-5) and found["acc"] == 0
  by = tasks.acc_by(batch.targets, batch, "rank")
  assert list(by) == [0, 1, 2] and all(part == (1.0, 50) for part in by.values())


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: MQAR(pairs=8, length=30), "length=30 must be even and at least 32"),
    (lambda: MQAR(pairs=8, length=64, vocab=16), "vocab=16 must be even, and half"),
    (lambda: MQAR(absent=1), "absent=1 needs filler='zeros'"),
    (lambda: MQAR(updates=5), r"updates=5 must lie in 0\.\.pairs=4"),
    (lambda: MQAR(absent=5, filler="zeros"), r"absent=5 must lie in 0\.\.pairs=4"),
    (lambda: Interference(updates=9, values=8), "updates=9 must not exceed values=8"),
    (lambda: Interference(keys=1), "keys=1 follows itself"),
    (lambda: SelectiveCopying(length=4, data=5), "data=5 must not exceed length=4"),
    (lambda: SelectiveCopying(vocab=3), "vocab=3 must be at least 4"),
    (lambda: Induction(length=4, decoys=1), "length=4 must be at least 5"),
    (lambda: Induction(vocab=2), "vocab=2 must be at least 3"),
    (lambda: Needle(length=4), "length=4 must be at least 5"),
    (lambda: Needle(queries=2), "queries=2 must not exceed needles=1"),
    (lambda: Needle(needles=600, length=5000), "keys=512 must be at least the 600 sentences"),
    (lambda: Needle(times=2, background="needles"), "times=2 is for background='repeat'"),
    (lambda: Interference(keys=2, order="rounds"), "keys=2 must be at least 3"),
    (lambda: Needle(vocab=1539), "vocab=1539 must exceed 3"),
    (lambda: Needle(depth=101), r"depth=101 must lie in 0\.\.100"),
    (lambda: TMaze(length=1), "length=1 must be at least 2"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()


def main():
  """Writes down the first two examples of each task that has none written down."""
  for name, task in SMALL.items():
    path = GOLDEN / f"{name}.json"
    if not path.exists():
      made = first(task)
      golden = {"inputs": made.inputs[:2].tolist(), "targets": made.targets[:2].tolist()}
      path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
