"""Words and sentences of bAbI's tasks 1 to 3 (Weston et al. 2015, arXiv 1502.05698), as ids.

A sentence is a template with places for an actor A, an object O and a location L:

    A went back to the L .    A picked up the O there .    where was the O before the L ?

Ids: 0 padding, then the words of the templates, actors, objects, locations. As symbols a sentence
is three ids: what happens, and its two names.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks

MOVE, GET, DROP = range(3)
MOVES = ("went", "journeyed", "travelled", "moved", "went back")
GETS = ("got", "took", "grabbed", "picked up")
DROPS = ("dropped", "left", "discarded", "put down")
STATEMENTS = (
  *(f"A {verb} to the L ." for verb in MOVES),
  *(f"A {verb} the O{there} ." for verbs in (GETS, DROPS) for there in ("", " there")
    for verb in verbs),
)  # fmt: skip
QUESTIONS = ("where is A ?", "where is the O ?", "where was the O before the L ?")  # by task
SYMBOLS = (
  *("move A L",) * 5,
  *("get A O",) * 8,
  *("drop A O",) * 8,
  *("where A ?", "where-object O ?", "where-was O L"),
)
ACTORS = (
  "mary john daniel sandra ruth peter alice henry emma oscar clara simon laura felix nina victor"
).split()
OBJECTS = (
  "apple football milk hat coin book lamp rope cup key drum kite ring sock bell torch"
).split()
LOCATIONS = (
  "kitchen garden hallway bathroom bedroom office cellar attic garage library porch studio barn "
  "stable tower chapel"
).split()
MOST = len(ACTORS)
FORMS = ("words", "symbols")
BLANKS = {"A": -1, "O": -2, "L": -3, "M": -4}  # M: another location


def words_of(sentences) -> tuple[str, ...]:
  """The words of templates, each once, in order."""
  found = dict.fromkeys(word for sentence in sentences for word in sentence.split())
  return tuple(word for word in found if word not in BLANKS)


@dataclasses.dataclass(frozen=True)
class Lexicon:
  """Templates and so many names of each kind, up to 16.

  Attributes:
    templates: sentences as in the module.

  Raises:
    ValueError: a number of names is above 16.
  """

  templates: tuple[str, ...] = STATEMENTS + QUESTIONS
  actors: int = 4
  objects: int = 3
  locations: int = 6

  def __post_init__(self):
    counts = {"actors": self.actors, "objects": self.objects, "locations": self.locations}
    for name, count in counts.items():
      if not 0 <= count <= MOST:
        raise ValueError(f"{name}={count} must lie in 0..{MOST}, for so many have names")

  @functools.cached_property
  def words(self) -> tuple[str, ...]:
    """The words of ids 1, 2, ..."""
    names = (*ACTORS[: self.actors], *OBJECTS[: self.objects], *LOCATIONS[: self.locations])
    return words_of(self.templates) + names

  @functools.cached_property
  def ids(self) -> dict[str, int]:
    return {word: i for i, word in enumerate(self.words, 1)}

  @property
  def size(self) -> int:
    """Ids, padding included."""
    return 1 + len(self.words)

  @property
  def first(self) -> tuple[int, int, int]:
    """The ids of the first actor, object and location."""
    location = self.size - self.locations
    return location - self.objects - self.actors, location - self.objects, location

  @functools.cached_property
  def table(self) -> np.ndarray:
    """Templates as ids, `[templates, words] int32`: names as in `BLANKS`, the rest 0."""
    rows = [[self._code(word) for word in template.split()] for template in self.templates]
    longest = max(map(len, rows))
    return np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32)

  def _code(self, word: str) -> int:
    return BLANKS[word] if word in BLANKS else self.ids[word]

  def sentences(
    self, template, actor, object, location, other: jax.Array | int = 0
  ) -> tuple[jax.Array, jax.Array]:
    """Ids `[..., words]` of templates with names filled in, and lengths `[...]`; all int32."""
    rows = jnp.asarray(self.table)[template]
    names = jnp.stack(jnp.broadcast_arrays(actor, object, location, other), axis=-1)
    for kind, first in enumerate((*self.first, self.first[2])):
      rows = jnp.where(rows == -1 - kind, first + names[..., kind, None], rows)
    return rows.astype(jnp.int32), jnp.sum(rows != 0, axis=-1, dtype=jnp.int32)


def lexicon(form: str, actors: int, objects: int, locations: int) -> Lexicon:
  """The lexicon of worlds, as words or symbols; templates have the same numbers in both."""
  checks.one_of("form", form, FORMS)
  templates = STATEMENTS + QUESTIONS if form == "words" else SYMBOLS
  return Lexicon(templates, actors, objects, locations)


def template(kind: jax.Array, verb: jax.Array, there: jax.Array) -> jax.Array:
  """Numbers of statements' templates: `kind` MOVE, GET or DROP, `verb` in [0, 1), `there` bool."""
  moves, others = len(MOVES), len(GETS)
  move = jnp.floor(verb * moves)
  other = moves + 2 * others * (kind - 1) + others * there + jnp.floor(verb * others)
  return jnp.where(kind == MOVE, move, other).astype(jnp.int32)


def pack(rows: jax.Array, lengths: jax.Array, total: int) -> tuple[jax.Array, jax.Array]:
  """The first `lengths [N]` ids of each of `rows [N, W]`, one row after the other.

  Returns:
    ids `[total] int32`, 0 behind the last; ends `[N] int32`, where each row has ended.
  """
  ends = jnp.cumsum(lengths)
  at = jnp.arange(total)
  row = jnp.searchsorted(ends, at, side="right")
  inside = at < ends[-1]
  row = jnp.where(inside, row, 0)
  column = jnp.where(inside, at - (ends - lengths)[row], 0)
  return jnp.where(inside, rows[row, column], 0).astype(jnp.int32), ends.astype(jnp.int32)
