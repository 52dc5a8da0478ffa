"""A model trained on 256 bytes reads 1024 badly, better with other rates, best with more steps."""

import pytest

from memjax import data
from tests.training import extension


@pytest.mark.slow
def test_a_short_model_learns_to_read_long_rows(tmp_path):
  corpus = data.load(cache_dir=tmp_path)
  ways = {"yarn, segments", "none, rows of 256"}
  bits = extension.measure(corpus, steps=400, more=30, batches=6, ways=ways)
  first = {way: pair[0] for way, pair in bits.items()}
  last = {way: pair[1] for way, pair in bits.items()}
  assert last["none, untrained"] > first["none, untrained"] + 0.5
  assert last["none, rows of 256"] > first["none, rows of 256"] + 0.5  # more of the same is no help
  assert last["yarn, untrained"] < last["none, untrained"] - 0.5
  assert first["yarn, segments"] < first["yarn, untrained"] + 0.02
  assert last["yarn, segments"] < last["yarn, untrained"] + 0.02
  assert last["yarn, segments"] < first["yarn, segments"] + 0.1  # as good far as near
