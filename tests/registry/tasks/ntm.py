"""Over bits: the tasks of the Neural Turing Machine's paper."""

from memjax.tasks.associative_recall import AssociativeRecall
from memjax.tasks.copying import Copy
from memjax.tasks.ngrams import NGrams
from memjax.tasks.priority_sort import PrioritySort
from memjax.tasks.repeat_copy import RepeatCopy

SMALL = {
  "copy": Copy(shortest=2, longest=5, bits=3),
  "repeat-copy": RepeatCopy(longest=3, most=4, bits=3, trained=(1, 4)),
  "associative-recall": AssociativeRecall(most=4, vectors=2, bits=3),
  "n-grams": NGrams(length=24, context=2),
  "priority-sort": PrioritySort(vectors=5, due=3, bits=3),
}
