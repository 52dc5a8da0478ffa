"""Stories of `babi_world` as text in the form of the bAbI files, and what follows from such text.

    text = write(World(task=2), stories)                          # stories: `tell`, mapped
    for example in babi.parse(text):
      assert solve(example) == (example.answer, example.supports)

`solve` reads words only. It answers all questions of the released files of tasks 1 to 3 with the
supports given there.
"""

import jax
import numpy as np

from memjax.tasks import babi_words as words
from memjax.tasks.babi import Example
from memjax.tasks.babi_words import DROP, GET, MOVE, QUESTIONS, STATEMENTS
from memjax.tasks.babi_world import Story, World

KINDS = {
  verb.split()[0]: kind
  for kind, verbs in ((MOVE, words.MOVES), (GET, words.GETS), (DROP, words.DROPS))
  for verb in verbs
}

BETWEEN = ("back", "to", "the", "there", "up", "down")


def write(world: World, stories: Story) -> str:
  """Stories, their arrays with a batch axis first, as text that `babi.parse` reads."""
  story = jax.tree.map(np.asarray, stories)
  return "".join(line for b in range(len(story.count)) for line in _lines(world, story, b))


def _lines(world: World, story: Story, b: int):
  """The lines of story b."""
  number, identity = 0, []
  for s in range(story.count[b]):
    number += 1
    identity.append(number)
    kind, name = story.kind[b, s], story.name[b, s]
    names = {"A": words.ACTORS[story.actor[b, s]].capitalize()}
    names["L" if kind == MOVE else "O"] = (words.LOCATIONS if kind == MOVE else words.OBJECTS)[name]
    yield f"{number} {_fill(STATEMENTS[story.template[b, s]], names)}\n"
    if story.asked[b, s]:
      number += 1
      subject = story.subject[b, s]
      names = {"A": words.ACTORS[subject].capitalize()} if world.task == 1 else {}
      names |= {"O": words.OBJECTS[subject]} if world.task > 1 else {}
      names |= {"L": words.LOCATIONS[story.before[b, s]]} if world.task == 3 else {}
      question = _fill(QUESTIONS[world.task - 1], names)
      answer = words.LOCATIONS[story.answer[b, s]]
      supports = " ".join(str(identity[i]) for i in story.supports[b, s] if i >= 0)
      yield f"{number} {question} \t{answer}\t{supports}\n"


def _fill(template: str, names: dict[str, str]) -> str:
  """A sentence as it is printed."""
  filled = " ".join(names.get(word, word) for word in template.split())
  filled = filled.replace(" .", ".").replace(" ?", "?")
  return filled[0].upper() + filled[1:]


def read(sentence: tuple[str, ...]) -> tuple[int, str, str]:
  """Kind, actor and location or object of a statement's words.

  Raises:
    ValueError: it is none of tasks 1 to 3.
  """
  who, verb, *others = (*sentence, "", "")
  kind = KINDS.get(verb)
  rest = [word for word in others if word not in ("", *BETWEEN)]
  if kind is None or len(rest) != 1:
    raise ValueError(f"{' '.join(sentence)!r} is not a statement of tasks 1 to 3")
  return kind, who, rest[0]


def solve(example: Example) -> tuple[str | None, tuple[int, ...]]:
  """The answer to a question of task 1, 2 or 3, and the statements that give it, in the files'
  order; (None, ()) if they do not."""
  question = example.question
  told = [read(sentence) for sentence in example.story]
  if len(question) == 3:  # where is mary
    moves = [i for i, (kind, who, _) in enumerate(told) if kind == MOVE and who == question[2]]
    return (told[moves[-1]][2], (moves[-1],)) if moves else (None, ())
  places = _places(told, question[3])
  if question[1] == "is":
    if not places or places[-1] is None:
      return None, ()
    answer, touch, move = places[-1]
    return answer, (touch, move)
  past = [step for step in places if step]
  at = [step[0] == question[-1] for step in past]
  if True not in at or False not in at[: _last(at, True)]:
    return None, ()
  before = _last(at[: _last(at, True)], False)  # its end; the latest stay at the named one follows
  return past[before][0], (past[-1][1], past[before + 1][2], past[before][2])


def _last(flags: list[bool], value: bool) -> int:
  """The last place of a value."""
  return len(flags) - 1 - flags[::-1].index(value)


def _places(told, thing: str) -> list[tuple[str, int, int] | None]:
  """Where an object is after each statement from the first about it, as far as that follows:
  location, the object's last statement, the statement of the move."""
  found, moves, touch, drop = [], {}, None, None
  for i, (kind, who, name) in enumerate(told):
    if kind == MOVE:
      moves[who] = i
    elif name == thing:
      touch, drop = i, moves.get(who)
    if touch is None:
      continue
    move = moves.get(told[touch][1]) if told[touch][0] == GET else drop
    found.append(None if move is None else (told[move][2], touch, move))
  return found
