"""Order recall: even choices, exact balance, and order that only the excerpt tells."""

import numpy as np
import pytest

from memjax.tasks.order_recall import FIRST, LAST, SEPARATOR, STOP, WHEN, WORD, A, OrderRecall
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import first, many


def test_bins_are_kept_and_balanced_exactly():
  task = SMALL["order-recall"]
  batch = many(task, 800)
  ids, distance, which = (
    np.asarray(a) for a in (batch.inputs, batch.meta["distance"], batch.meta["bin"])
  )
  edges = np.asarray(task.edges)
  assert edges.tolist() == [5, 12, 16, 24, 38]
  assert (edges[which] < distance).all() and (distance <= edges[which + 1]).all()
  assert (np.bincount(which) == 200).all()
  flipped = np.asarray(batch.targets)[:, -1] == A + 1
  last = ids[:, task.length] == LAST
  assert 300 < last.sum() < 500 and set(ids[:, task.length]) == {FIRST, LAST}
  for i in range(4):  # which of the quoted ones came first: half and half, whatever is asked
    assert (flipped ^ last)[which == i].sum() == 100
  assert OrderRecall(length=5000).edges == (20, 1000, 1250, 2500, 4000)


def test_segments_are_quoted_from_starts_of_sentences():
  task = SMALL["order-recall"]
  n, size = task.length, task.segment
  for ids, place in zip(first(task).inputs.tolist(), first(task).meta["place"], strict=True):
    place, a, b = int(place), ids[n + 1 : n + 1 + size], ids[n + 2 + size : n + 2 + 2 * size]
    assert ids[n + 1 + size] == SEPARATOR and ids[place : place + size] == a
    starts = [0] + [i + 1 for i in range(n - size) if ids[i] == STOP]
    assert place in starts and any(ids[s : s + size] == b for s in starts)
    sentences = np.diff([i for i in range(n) if ids[i] == STOP])
    assert sentences.min() >= task.shortest and sentences.max() <= task.longest


def test_places_are_even_and_tenths_are_told():
  task = SMALL["order-recall-when"]
  batch = many(task, 800)
  ids, place = np.asarray(batch.inputs), np.asarray(batch.meta["place"])
  assert (ids[:, task.length] == WHEN).all()
  named = ids[:, -2]
  assert (named >= WORD + task.words).all()
  assert ((ids[:, : task.length] == named[:, None]).sum(axis=1) == 1).all()
  np.testing.assert_array_equal(np.asarray(batch.targets)[:, -1] - (A + 2), 10 * place // 48)
  share = np.bincount(10 * place // 48, minlength=10) / 800
  assert share[1:9].min() > 0.06 and share.max() < task.floor + 0.08


def test_words_have_no_place_of_their_own():
  # Who knows where each word usually stands, from other excerpts, is at chance in every bin.
  task = SMALL["order-recall"]
  batch = many(task, 1600)
  n, size = task.length, task.segment
  seen = batch.inputs[:800, :n]
  total = np.bincount(seen.reshape(-1), np.tile(np.arange(n), 800), minlength=task.vocab)
  usual = total / np.maximum(np.bincount(seen.reshape(-1), minlength=task.vocab), 1)
  ids, due, which = (a[800:] for a in (batch.inputs, batch.targets[:, -1], batch.meta["bin"]))
  a = usual[ids[:, n + 1 : n + 1 + size]].mean(axis=1)
  b = usual[ids[:, n + 2 + size : n + 2 + 2 * size]].mean(axis=1)
  right = due == A + ((a > b) ^ (ids[:, n] == LAST))
  for i in range(4):
    assert abs(right[which == i].mean() - 0.5) < 4 * (0.25 / 200) ** 0.5


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: OrderRecall(length=80), "length=80 must be at least 84"),
    (lambda: OrderRecall(asked="where"), "asked='where' is not one of"),
    (lambda: OrderRecall(anchors=5), "anchors=5 must be 0 or at least 25"),
    (lambda: OrderRecall(shortest=50), r"shortest=50 must lie in 2\.\.longest=40"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
