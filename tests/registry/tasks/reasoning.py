"""Chains, paths, ranks and programs: what is kept must also be put together."""

from memjax.tasks.nth_farthest import NthFarthest
from memjax.tasks.paired_associative_inference import PairedAssociativeInference
from memjax.tasks.program_evaluation import ProgramEvaluation
from memjax.tasks.shortest_path import ShortestPath

SMALL = {
  "pai": PairedAssociativeInference(chains=3, chain=4, questions=5, items=20),
  "pai-open": PairedAssociativeInference(chains=3, questions=4, answers="open", items=20),
  "shortest-path": ShortestPath(nodes=6, hops=3, names=20),
  "nth-farthest": NthFarthest(objects=4, features=3, ids=6),
  "program": ProgramEvaluation(length=3, nest=2, mixed=True),
  "program-reverse": ProgramEvaluation(length=5, nest=1, group="reverse"),
}
