"""Few shots, surveys, consolidation: what no part of a stream tells, and streams by the stretch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.consolidation import DIGIT, ENTITY, Consolidation
from memjax.tasks.few_shots import FewShots
from memjax.tasks.survey import MET, NAME, TOPIC, VOTE, Survey
from memjax.tasks.task import TRAIN
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import FIRST, first, many


def test_an_answer_differs_from_that_of_the_old_fact():
  task = SMALL["consolidation"]
  batch = first(task)
  lines = np.asarray(batch.inputs)[:, : task.told].reshape(50, task.facts, -1)
  asked = np.asarray(batch.inputs)[:, task.told :].reshape(50, task.queries, -1)
  due = np.asarray(batch.targets)[:, task.told :].reshape(50, task.queries, -1)[..., -1]
  age = np.asarray(batch.meta["age"])[:, task.told :].reshape(50, task.queries, -1)[..., -1]
  np.testing.assert_array_equal(lines[..., :2] - DIGIT, np.broadcast_to(
    np.stack(np.divmod(np.arange(task.facts), 10), axis=1), (50, task.facts, 2)))  # fmt: skip
  for row in range(50):
    facts = [tuple(line) for line in lines[row, :, -3:].tolist()]
    for (_, s, r1, r2), answer, ago in zip(asked[row].tolist(), due[row], age[row], strict=True):
      objects = [o for a, b, o in facts if (a, b) == (s, r1)]
      assert len(objects) == 2 and len(set(objects)) == 2  # updated once
      ends = [[o for a, b, o in facts if (a, b) == (m, r2)] for m in objects]
      assert ends[1] == [answer] and len(ends[0]) == 1 and ends[0] != ends[1]
      assert facts[task.facts - ago] == (s, r1, objects[1])


def test_lines_of_no_question_leave_the_asked_facts_alone():
  task = Consolidation(facts=300, queries=2, hops=1, serial=False, entities=16, relations=3)
  batch = jax.jit(lambda: task.sample(0, TRAIN, jnp.arange(4)))()
  for row in np.asarray(batch.inputs):
    lines, asked = row[: task.told].reshape(-1, 3), row[task.told :].reshape(2, 3)
    for _, s, r in asked:
      same = (lines[:, 0] == s) & (lines[:, 1] == r)
      assert same.sum() == 2 and (lines[lines[:, 0] == s, 1] != r).sum() > 4
    assert (np.bincount(lines[:, 1] - ENTITY - 16) > 60).all()


def test_shots_are_noisy_patterns_and_labels_are_drawn_anew():
  task = SMALL["few-shots"]
  batch = first(task)
  shots = np.asarray(batch.inputs)[:, : task.told].reshape(50, 8, 7)
  labels = shots[..., -1] - 2
  assert (np.sort(labels.reshape(50, 2, 4)) == np.arange(4)).all()  # each round has every class
  assert len({tuple(row) for row in labels.tolist()}) > 40
  off = np.asarray([
    (shot[label == c][0, :5] != shot[label == c][1, :5]).sum()
    for shot, label in zip(shots, labels, strict=True) for c in range(4)
  ])  # fmt: skip
  assert off.max() == 2 and off.min() == 0 and off.mean() > 1


def test_a_survey_has_one_first_of_each():
  task = SMALL["survey"]
  batch = first(task)
  ids, due = np.asarray(batch.inputs)[:, : task.told], np.asarray(batch.targets)[:, -3:]
  assert np.asarray(batch.inputs)[0, -3:].tolist() == [TOPIC, MET, VOTE]
  often = 0
  for row, (topic, person, option) in zip(ids, due, strict=True):
    at = np.flatnonzero(row == VOTE)
    votes = np.bincount(row[at + 2], minlength=NAME)
    assert votes.argmax() == option and (votes == votes.max()).sum() == 1
    met = {tuple(sorted(row[i + 1 : i + 3])) for i in np.flatnonzero(row == MET)}
    friends = np.bincount([p for pair in met for p in pair])
    assert friends.argmax() == person and (friends == friends.max()).sum() == 1
    named = np.bincount([p for i in np.flatnonzero(row == MET) for p in row[i + 1 : i + 3]])
    often += named.argmax() == person
    word = np.where(row >= task._word, (row - task._word) // task.words, task.topics)
    topics = np.bincount(word.reshape(-1, task.size).min(axis=1), minlength=4)[:3]
    assert topics.argmax() == topic - NAME and (topics == topics.max()).sum() == 1
  assert often < 50  # to be named most often is not to have met most others


def test_the_floor_of_a_survey_is_what_one_paragraph_says():
  task = SMALL["survey"]
  batch = many(task, 500)
  ids, due = batch.inputs[:, : task.told], batch.targets[:, -3:]
  share = np.zeros(3)
  for row, (topic, person, option) in zip(ids, due, strict=True):
    share[2] += np.mean(row[np.flatnonzero(row == VOTE) + 2] == option)
    at = np.flatnonzero(row == MET)
    share[1] += np.mean(np.concatenate([row[at + 1], row[at + 2]]) == person)
    word = np.where(row >= task._word, (row - task._word) // task.words, task.topics)
    named = word.reshape(-1, task.size).min(axis=1)
    share[0] += np.mean(named[named < task.topics] == topic - NAME)
  assert share.mean() / 500 == pytest.approx(task.floor, abs=0.06)


def test_any_stretch_of_a_stream_is_that_of_the_whole():
  task = SMALL["consolidation"]
  whole = first(task)
  part = jax.jit(lambda start: task.chunk(0, TRAIN, FIRST, start, 33))
  for start in (0, 7, task.length - 33):
    made = part(start)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(whole), strict=True):
      np.testing.assert_array_equal(a, b[:, start : start + 33] if b.ndim == 2 else b)


def test_a_stretch_of_millions_takes_the_room_of_a_stretch():
  task = FewShots(shots=100_000)  # 17 million tokens
  make = jax.jit(lambda start: task.chunk(0, TRAIN, jnp.arange(1), start, 100))
  program = make.lower(0).compile()
  assert program.memory_analysis().temp_size_in_bytes < 2**20
  end = program(task.length - 100)  # the one program serves any place
  assert int(end.mask.sum()) == task.queries and int(end.length[0]) == task.length
  before = program(task.length - 110)
  np.testing.assert_array_equal(before.inputs[:, 10:], end.inputs[:, :-10])


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: FewShots(size=8), "noise=2 must be below a quarter of size=8"),
    (lambda: FewShots(words=9), "words=9 must be at least classes=16"),
    (lambda: Consolidation(facts=15), "facts=15 must be at least 16"),
    (lambda: Consolidation(entities=39), "entities=39 must be at least 40"),
    (lambda: Consolidation(digits=1), "digits=1 must be able to number facts=64"),
    (lambda: Survey(paragraphs=100), "paragraphs=100 must be at least votes=128"),
    (lambda: Survey(size=3), "size=3 must be at least 4"),
    (lambda: Survey(votes=15), "votes=15 must be at least twice options=8"),
    (lambda: Survey(meetings=20), "meetings=20 at least their 28 pairs"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
