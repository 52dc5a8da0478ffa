"""LM2 answers in a later segment what the first one told, and not when its slots are reset."""

import functools

import pytest

from memjax.slots import LM2
from memjax.transformer import Attention, FeedForward, Stack
from tests.slots.beside import recalled

pytestmark = pytest.mark.slow
SEGMENT = 64


def test_a_fact_is_recalled_two_segments_later_through_the_slots_alone():
  attention = functools.partial(Attention, heads=2)  # sees one segment
  lm2 = functools.partial(LM2, attention=attention, slots=8, segment=SEGMENT, heads=2)
  feed_forward = functools.partial(FeedForward, hidden=64)
  body = functools.partial(Stack, pattern=(lm2, feed_forward), repeats=2)
  kept = recalled(body, keep=True, steps=1000, batch=64, segment=SEGMENT)
  reset = recalled(body, keep=False, steps=200, batch=64, segment=SEGMENT)
  print(f"recalled: {kept:.3f}, with slots reset {reset:.3f}, chance 0.250")
  assert kept > 0.95
  assert reset < 0.35
