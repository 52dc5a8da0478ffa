"""PMI answers in a later segment what the first one told, and not when its memories are reset."""

import functools

import pytest

from memjax.slots import PMI
from memjax.transformer import FeedForward, Stack
from tests.slots.beside import recalled

pytestmark = pytest.mark.slow
SEGMENT = 16


def test_a_fact_is_recalled_two_segments_later_through_the_memories_alone():
  pmi = functools.partial(PMI, segment=SEGMENT, slots=4, heads=2, key_size=16, long_term=2)
  feed_forward = functools.partial(FeedForward, hidden=64)
  body = functools.partial(Stack, pattern=(pmi, feed_forward), repeats=2)
  kept = recalled(body, keep=True, steps=500, batch=32, segment=SEGMENT)
  reset = recalled(body, keep=False, steps=200, batch=32, segment=SEGMENT)
  print(f"recalled: {kept:.3f}, with memories reset {reset:.3f}, chance 0.250")
  assert kept > 0.95
  assert reset < 0.35
