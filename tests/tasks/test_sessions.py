"""Sessions: what each kind of question needs stands where it is said to stand."""

import dataclasses

import jax
import numpy as np
import pytest

from memjax.tasks.sessions import CONFLICT, KIND, NAMES, NONE, NUMERAL, SPEAKER, Sessions
from memjax.tasks.task import IGNORE, TRAIN
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import FIRST, first, many

TASK = SMALL["sessions"]


def statements(row):
  """By subject and relation: sessions and values, in order."""
  found = {}
  for at in np.flatnonzero((row[: TASK.told] == SPEAKER) | (row[: TASK.told] == SPEAKER + 1)):
    found.setdefault((row[at + 1], row[at + 2]), []).append((int(at) // TASK.size, row[at + 3]))
  return found


def questions(row, targets):
  """Of each question its kind, ids and answers."""
  starts = [i for i in range(TASK.told, len(row)) if KIND <= row[i] < NUMERAL and row[i] > CONFLICT]
  for a, b in zip(starts, [*starts[1:], len(row)], strict=True):
    yield (
      NAMES[row[a] - KIND],
      row[a + 1 : b].tolist(),
      targets[a:b][targets[a:b] != IGNORE].tolist(),
    )


def test_evidence_is_where_the_asked_pairs_are_told_and_nowhere_else():
  batch = first(TASK)
  evidence = np.asarray(jax.jit(lambda: TASK.evidence(0, TRAIN, FIRST))())
  for row, targets, where in zip(
    *map(np.asarray, (batch.inputs, batch.targets)), evidence, strict=True
  ):
    told = statements(row)
    for (kind, ids, due), sessions in zip(questions(row, targets), where, strict=True):
      needed = sorted(sessions[sessions >= 0].tolist())
      if due == [NONE]:
        assert needed == [] and tuple(ids[:2]) not in told
      elif kind in ("extraction", "update", "count", "sum", "most", "on", "contradiction"):
        assert [s for s, _ in told[tuple(ids[:2])]] == needed
      elif kind in ("distance", "first", "next", "order"):
        pairs = list(zip(ids[::2], ids[1::2], strict=False))[: 3 if kind == "order" else None]
        assert sorted(s for pair in pairs for s, _ in told[pair]) == needed
  kept = np.asarray(TASK.only_evidence(batch, evidence).inputs)
  for row, full, where in zip(kept, np.asarray(batch.inputs), evidence, strict=True):
    blank = [s for s in range(TASK.sessions) if not row[s * TASK.size : (s + 1) * TASK.size].any()]
    assert set(blank) == set(range(TASK.sessions)) - set(where.ravel().tolist())
    assert (row[TASK.told :] == full[TASK.told :]).all()


def test_shares_of_answers_are_those_told():
  batch = many(TASK, 400)
  got = {kind: [] for kind in NAMES}
  flat = 0
  for row, targets in zip(batch.inputs, batch.targets, strict=True):
    told = statements(row)
    for kind, ids, due in questions(row, targets):
      got[kind].append(due[0])
      if kind == "update" and due != [NONE]:
        flat += told[tuple(ids[:2])][0][1] == due[0]  # the first value is never the last one
  assert flat == 0
  none = np.mean([due == NONE for kind in ("extraction", "update") for due in got[kind]])
  assert abs(none - TASK.abstain) < 4 * (0.11 / 800) ** 0.5
  assert abs(np.mean(np.asarray(got["contradiction"]) == CONFLICT) - 0.5) < 4 * (0.25 / 400) ** 0.5
  for kind, due in got.items():
    if kind not in ("order", "distance"):
      share = np.bincount(due).max() / 400
      assert TASK._guess(kind) - 0.1 < share < TASK._guess(kind) + 4 * (0.25 / 400) ** 0.5, kind


def test_a_set_of_kinds_is_a_task():
  task = dataclasses.replace(TASK, kinds=("update", "hop", "update"), size=32)
  batch = jax.jit(lambda: task.sample(0, TRAIN, FIRST))()
  asked = np.asarray(batch.inputs)[:, task.told :]
  names = [NAMES.index(kind) + KIND for kind in task.kinds]
  assert (asked[:, [0, 3, 7]] == names).all() and int(batch.mask.sum()) == 3 * 50
  assert not (asked[:, 1:3] == asked[:, 8:10]).all(axis=1).any()


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Sessions(kinds=("summary",)), "kinds='summary' is not one of"),
    (lambda: Sessions(sessions=6), "sessions=6 be at least 7"),
    (lambda: Sessions(most=8), r"most=8 must lie in 2\.\.7"),
    (lambda: Sessions(size=69), "size=69 must be at least 70"),
    (lambda: Sessions(subjects=4), "subjects=4 times relations=16 must be at least 116"),
    (lambda: Sessions(sessions=600), "numerals=1024 must be at least 1200"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
