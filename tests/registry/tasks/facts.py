"""Facts: that change, that stay in force, that are learned by heart, that contexts push out."""

from memjax.tasks.fact_contexts import FactContexts
from memjax.tasks.fact_recall import FactRecall
from memjax.tasks.fact_updates import FactUpdates
from memjax.tasks.instructions import Instructions

PEOPLE = {"people": 20, "names": (6, 8), "choices": (4, 9, 5)}

SMALL = {
  "fact-updates": FactUpdates(
    turns=5, block=4, pivots=2, updates=(1, 3), subjects=6, relations=4, objects=5
  ),
  "instructions": Instructions(sessions=7, queries=4, size=(7, 10), slots=5, values=4, filler=6),
  "fact-recall": FactRecall(**PEOPLE),
  "fact-recall-tool": FactRecall(**PEOPLE, digits=2, form="tool"),
  "fact-contexts": FactContexts(facts=4, subjects=30, relations=8, objects=5),
}
