"""Stories of actors and objects, alone and among other text."""

from memjax.tasks.babi_stories import Babi
from memjax.tasks.babilong import BABILong
from memjax.tasks.segment_facts import SegmentFacts

SMALL = {
  "babi-1": Babi(task=1, questions=2, between=3, actors=5, locations=7),
  "babi-2": Babi(task=2, questions=1, form="symbols"),
  "babilong": BABILong(task=3, length=240, statements=24, text="grammar", words=40, overlap=0.2),
  "facts-anywhere": SegmentFacts(segments=3, segment=24, facts=2),
  "facts-reason": SegmentFacts(mode="reason", segments=3, segment=24),
}
