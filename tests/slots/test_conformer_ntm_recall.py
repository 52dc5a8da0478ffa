"""Behind a Conformer encoder that sees one segment alone, the slots carry what was told."""

import functools

import pytest

from memjax.slots import ConformerNTM
from memjax.transformer import Conformer, FeedForward, Stack
from tests.slots.beside import recalled

pytestmark = pytest.mark.slow
SEGMENT = 8


def test_a_fact_is_recalled_two_segments_later_through_the_slots_alone():
  """Of two facts the values are kept but not bound to their keys: 0.64 after 3,000 steps."""
  encoder = functools.partial(Conformer, blocks=1, heads=2, hidden=32, kernel=3)
  memory = functools.partial(ConformerNTM, slots=8, width=16)
  feed_forward = functools.partial(FeedForward, hidden=64)
  body = functools.partial(Stack, pattern=(encoder, memory, feed_forward))
  options = {"batch": 32, "segment": SEGMENT, "rate": 5e-3}
  kept = recalled(body, keep=True, steps=500, **options)
  reset = recalled(body, keep=False, steps=300, **options)
  print(f"recalled: {kept:.3f}, with the state reset at every segment {reset:.3f}, chance 0.250")
  assert kept > 0.95
  assert reset < 0.35
