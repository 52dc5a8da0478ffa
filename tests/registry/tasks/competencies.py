"""What an agent's memory must do: find facts, learn classes from a stream, sum it up, forget."""

from memjax.tasks.consolidation import Consolidation
from memjax.tasks.few_shots import FewShots
from memjax.tasks.sessions import Sessions
from memjax.tasks.survey import Survey

SMALL = {
  "few-shots": FewShots(classes=4, shots=2, queries=2, size=5, noise=1, words=8),
  "consolidation": Consolidation(facts=12, queries=2, entities=24, relations=3, digits=2),
  "sessions": Sessions(
    sessions=8,
    size=66,
    noise=1,
    others=4,
    numerals=64,
    subjects=20,
    relations=6,
    objects=12,
    words=8,
  ),
  "survey": Survey(
    paragraphs=24, size=5, votes=9, meetings=11, topics=3, options=3, persons=5, words=2
  ),
}
