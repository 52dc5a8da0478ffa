"""The twenty bAbI tasks from their real files (Weston et al. 2015, arXiv 1502.05698).

A line is `ID text`, or `ID question <tab> answer <tab> IDs of supporting lines`; IDs start again at
1 with every story. An example is a question with all the statements of its story before it; earlier
questions are left out, and keep their IDs.
"""

import dataclasses
import pathlib
import re

import numpy as np

TASKS = tuple(range(1, 21))
_WORD = re.compile(r"[^\s.?]+")


class BabiError(ValueError):
  """A file is missing or is not in the bAbI format; the message says which and where."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One question.

  Attributes:
    story: the statements before it, oldest first, as lower-case words.
    question: its words.
    answer: one word; several answers are joined by commas, as in the files.
    supports: places in `story` of the statements that it takes.
  """

  story: tuple[tuple[str, ...], ...]
  question: tuple[str, ...]
  answer: str
  supports: tuple[int, ...]


def words(text: str) -> tuple[str, ...]:
  """The words of a sentence in lower case, without full stops and question marks."""
  return tuple(_WORD.findall(text.lower()))


def parse(text: str, name: str = "text") -> list[Example]:
  """The examples of a file's text.

  Raises:
    BabiError: a line has another form; `name` and the line's number are given.
  """
  examples, story, place = [], [], {}
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      identity, rest = line.split(" ", 1)
      if int(identity) == 1:
        story, place = [], {}
      if "\t" not in rest:
        place[int(identity)] = len(story)
        story.append(words(rest))
        continue
      question, answer, supports = (rest.split("\t") + [""])[:3]
      supports = tuple(place[int(i)] for i in supports.split())
      examples.append(Example(tuple(story), words(question), answer.strip().lower(), supports))
    except (ValueError, KeyError) as error:
      raise BabiError(f"{name}, line {number}, is not a bAbI line: {line!r}") from error
  return examples


def load(folder, task: int, split: str) -> list[Example]:
  """The examples of one task, `split` "train" or "test", from a folder such as `en`.

  Raises:
    BabiError: there is no such file, or it is not readable as bAbI text.
  """
  found = sorted(pathlib.Path(folder).glob(f"qa{task}_*_{split}.txt"))
  if len(found) != 1:
    raise BabiError(
      f"{folder} holds {len(found)} files qa{task}_*_{split}.txt; there must be one. The path is "
      "that of a folder such as tasks_1-20_v1-2/en"
    )
  try:
    return parse(found[0].read_text(encoding="utf-8"), str(found[0]))
  except UnicodeDecodeError as error:
    raise BabiError(
      f"{found[0]} is not UTF-8 text: {error.reason} at byte {error.start}"
    ) from error


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Ids of words and answers; id 0 pads."""

  ids: dict[str, int]

  def __len__(self) -> int:
    return len(self.ids) + 1

  def encode(self, sentence: tuple[str, ...], length: int) -> list[int]:
    """Ids of a sentence, padded to `length`."""
    return [self.ids[word] for word in sentence] + [0] * (length - len(sentence))


def vocabulary(examples) -> tuple[Vocabulary, int]:
  """The vocabulary of examples, and how many words their longest sentence has."""
  known, longest = {}, 0
  for example in examples:
    for sentence in (*example.story, example.question):
      longest = max(longest, len(sentence))
      for word in sentence:
        known.setdefault(word, len(known) + 1)
    known.setdefault(example.answer, len(known) + 1)
  return Vocabulary(known), longest


@dataclasses.dataclass(frozen=True)
class Questions:
  """Examples as arrays, their sentences held once.

  Attributes:
    sentences: `[S, J]` int32, all different; the first is empty.
    story: `[Q, N]` int32, places in `sentences` of the last N statements, most recent first.
    count: `[Q]` int32, how many of them there are.
    question: `[Q, J]` int32.
    answer: `[Q]` int32.
    task: `[Q]` int32.
  """

  sentences: np.ndarray
  story: np.ndarray
  count: np.ndarray
  question: np.ndarray
  answer: np.ndarray
  task: np.ndarray

  def __len__(self) -> int:
    return len(self.answer)

  def take(self, rows) -> "Questions":
    """Some of the questions, over the same sentences."""
    arrays = {name: getattr(self, name)[rows] for name in ("story", "count", "question", "answer")}
    return Questions(self.sentences, task=self.task[rows], **arrays)


def to_arrays(by_task: dict[int, list[Example]], known: Vocabulary, *, slots: int, length: int):
  """Examples by task as `Questions`; sentences of more than `length` words are an error."""
  places, sentences = {(): 0}, [[0] * length]

  def place(sentence):
    if sentence not in places:
      places[sentence] = len(sentences)
      sentences.append(known.encode(sentence, length))
    return places[sentence]

  story, count, question, answer, task = [], [], [], [], []
  for number, examples in by_task.items():
    for example in examples:
      last = [place(s) for s in example.story[::-1][:slots]]
      story.append(last + [0] * (slots - len(last)))
      count.append(len(last))
      question.append(known.encode(example.question, length))
      answer.append(known.ids[example.answer])
      task.append(number)
  return Questions(
    *(np.asarray(a, np.int32) for a in (sentences, story, count, question, answer, task))
  )
