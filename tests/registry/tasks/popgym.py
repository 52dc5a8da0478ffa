"""Games of POPGym that are sequences."""

from memjax.tasks.popgym import Autoencode, CountRecall, RepeatFirst, RepeatPrevious

SMALL = {
  "repeat-first": RepeatFirst(),
  "repeat-previous": RepeatPrevious(),
  "autoencode": Autoencode(),
  "count-recall": CountRecall(),
}
