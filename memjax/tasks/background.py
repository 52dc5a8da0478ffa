"""Text to hide facts in, as ids: sentences of the running Python's docstrings, of files, or drawn.

Words are letters, digits and underscores in lower case, or a sign; a sentence ends with . ! or ?
and is kept if it has 10 to 60 of them. Names of the facts' lexicon are unknown words here, so that
no text tells of them.
"""

import collections
import dataclasses
import functools
import glob
import os
import pathlib
import re

import numpy as np

from memjax.data.sources import stdlib_files
from memjax.tasks.babi_words import ACTORS, MOVES, Lexicon

SHORTEST, LONGEST = 10, 60
DOCSTRING = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
WORD = re.compile(r"[a-z0-9_']+|[.,;:!?()]")
DRAWN, ZIPF = 4000, 1.1  # sentences and the power of their words


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """Sentences one after the other: ids `[N] int32`, where each begins `[M] int32` (the first at
  0)."""

  ids: np.ndarray
  starts: np.ndarray


@functools.lru_cache(maxsize=8)
def load(source: str, words: int, lexicon: Lexicon, overlap: float = 0.0) -> Text:
  """A text's ids: words of the lexicon have theirs, `lexicon.size` is an unknown word, and the
  `words` most frequent others follow.

  Args:
    source: "docstrings", "grammar" (2,000 words by Zipf's law in no order; the same everywhere), or
      a path of text files, in which `*` and `**` may stand.
    overlap: share of sentences that are put in between: of other persons (known words) who move
      between the lexicon's locations.

  Raises:
    FileNotFoundError: no file is there.
    ValueError: the text has no sentence of 10 to 60 words; there is no other person.
  """
  others = ACTORS[lexicon.actors :]
  if overlap and not others:
    raise ValueError(f"overlap={overlap} needs other persons; the lexicon has all {len(ACTORS)}")
  sentences = _grammar() if source == "grammar" else list(_kept(_documents(source)))
  if not sentences:
    raise ValueError(f"text={source!r} has no sentence of {SHORTEST} to {LONGEST} words")
  count = collections.Counter(word for sentence in sentences for word in sentence)
  names = set(lexicon.words[lexicon.first[0] - 1 :])
  known = {word: i for word, i in lexicon.ids.items() if word not in names}
  count.update(dict.fromkeys(others if overlap else (), 10**9))
  common = [word for word, _ in count.most_common() if word not in known and word not in names]
  known |= {word: lexicon.size + 1 + i for i, word in enumerate(common[:words])}
  rows = [[known.get(word, lexicon.size) for word in sentence] for sentence in sentences]
  if overlap:
    rows = list(_mixed(rows, [known[name] for name in others if name in known], lexicon, overlap))
  starts = np.cumsum([0] + [len(row) for row in rows[:-1]])
  return Text(np.concatenate(rows).astype(np.int32), starts.astype(np.int32))


def _documents(source: str):
  """The texts of a source."""
  if source == "docstrings":
    root, files = stdlib_files()
    for file in files:
      code = (root / file).read_text(encoding="utf-8", errors="replace")
      for found in DOCSTRING.finditer(code):
        line = code[code.rfind("\n", 0, found.start()) + 1 : found.start()]
        if line.strip() in ("", "r"):  # nothing is assigned
          yield found[2]
    return
  files = sorted(
    p for p in glob.glob(os.path.expanduser(source), recursive=True) if os.path.isfile(p)
  )
  if not files:
    raise FileNotFoundError(f"text={source!r} is no file; it may be 'docstrings' or 'grammar'")
  for file in files:
    yield pathlib.Path(file).read_text(encoding="utf-8", errors="replace")


def _kept(documents):
  """Sentences, as words."""
  for document in documents:
    sentence = []
    for word in WORD.findall(document.lower()):
      sentence.append(word)
      if word in (".", "!", "?"):
        if SHORTEST <= len(sentence) <= LONGEST:
          yield sentence
        sentence = []


def _dice(seed: int, count: int) -> np.ndarray:
  """Numbers in [0, 1), the same in every numpy: the generator's raw bits."""
  return (np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) / 2.0**53


def _grammar() -> list[list[str]]:
  """4,000 sentences of 10 to 40 words; the sign at the end is one."""
  weight = np.cumsum(np.arange(1, 2001) ** -ZIPF)
  lengths = 9 + (_dice(0, DRAWN) * 31).astype(int)
  drawn = np.searchsorted(weight, _dice(1, int(lengths.sum())) * weight[-1], side="right")
  pieces = np.split(drawn, np.cumsum(lengths)[:-1])
  return [[f"word{i}" for i in piece] + ["."] for piece in pieces]


def _mixed(rows, persons: list[int], lexicon: Lexicon, overlap: float):
  """Rows, and before each perhaps one of another person; `overlap` of all are such."""
  if not persons:
    raise ValueError("overlap needs words=1 or more, for the other persons' names")
  verbs = [lexicon.ids[verb] for verb in MOVES if " " not in verb]
  to, the, stop = (lexicon.ids[word] for word in ("to", "the", "."))
  dice = _dice(2, 4 * (len(rows) + 1) * 8).reshape(-1, 4)
  n = 0
  for row in rows:
    while dice[n % len(dice), 0] < overlap:
      _, who, verb, place = dice[n % len(dice)]
      yield [
        persons[int(who * len(persons))],
        verbs[int(verb * len(verbs))],
        *(to, the),
        lexicon.first[2] + int(place * lexicon.locations),
        stop,
      ]
      n += 1
    n += 1
    yield row
