"""Streams with new words: each comes back once, after its name, at the distance told."""

import numpy as np
import pytest

from memjax.tasks import unknown_words


def test_new_words_follow_their_name_and_come_back_once():
  streams = unknown_words.sample(0, 20, 40, names=5, vocab=12, farthest=16)
  assert set(streams.distance[streams.distance > 0]) > {3, 8, 12}
  for ids, distance in zip(streams.ids, streams.distance, strict=True):
    new = np.flatnonzero(ids >= 12)
    words, counts = np.unique(ids[new], return_counts=True)
    assert len(words) >= 2 and (counts == 2).all()
    np.testing.assert_array_equal(ids[new - 1], ids[new] - 12)
    for place in np.flatnonzero(distance):
      assert ids[place] == ids[place - distance[place]] >= 12
    assert (distance > 0).sum() == len(words) and ids.min() >= 1


def test_too_many_names_are_refused():
  with pytest.raises(ValueError, match="names=11 must be from 1 to vocab - 2 = 10"):
    unknown_words.sample(0, 1, 20, names=11, vocab=12, farthest=4)
