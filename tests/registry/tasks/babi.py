"""Stories of actors and objects, alone and among other text."""

from memjax.tasks.babi_stories import Babi

SMALL = {
  "babi-1": Babi(task=1, questions=2, between=3, actors=5, locations=7),
  "babi-2": Babi(task=2, questions=1, law="code", form="symbols"),
}
