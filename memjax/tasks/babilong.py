"""BABILong ("BABILong: Testing the Limits of LLMs with Long Context Reasoning-in-a-Haystack",
Kuratov et al. 2024, arXiv 2406.10149; first with 2402.10790): a story of bAbI among other text.

    .. text . mary went to the garden . text . text . mary took the milk there . text .
      text . where is the milk ?

The statements before one question of a story stand, in their order, between sentences of a text
that begins with any of its sentences and is cut where `length` is reached; each gap between
sentences is as likely for each statement, and several may share one. The answer, a location, is due
at the last id. Ids: 0 padding, bAbI's words and names, unknown words, words of the text.

Differences: an id a word; `babi_world` tells the stories; the text is the running Python's
docstrings, by default, and goes on from its beginning where it ends; the text's first sentence is
whole; answers are single ids, so that a label cannot come with others.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import babi_replay as replay
from memjax.tasks import background
from memjax.tasks.babi_stories import Babi
from memjax.tasks.babi_words import QUESTIONS, STATEMENTS, Lexicon, lexicon
from memjax.tasks.babi_world import World
from memjax.tasks.stretches import Stretches
from memjax.tasks.task import IGNORE, PAD, Batch, field

QUESTIONS_OF_A_STORY = 5


@dataclasses.dataclass(frozen=True)
class BABILong(Stretches):
  """See the module.

  Attributes:
    task: 1, 2 or 3 of bAbI.   length: T, the question included.
    statements: a story has so many at most. None: an eighth of `length`, as published, or fewer
      where hardly any story has more.
    text: "docstrings", "grammar", or a path; `words`: its words that are known. See `background`.
    overlap: share of the text's sentences about other persons' moves.
    window: percent of the text between which statements may stand.
    law: of `babi_world`.

  Meta, of an example: `task`, `length`; `statements`, how many; `distance` in ids from the first
  support to the question's end.

  Raises:
    ValueError: `length` has less than 8 ids for each of `statements`; `overlap`, `window`.
  """

  task: int = 1
  length: int = 1024
  statements: int | None = None
  text: str = "docstrings"
  words: int = 2000
  overlap: float = 0.0
  window: tuple[int, int] = (0, 100)
  law: str = "files"
  number = 32

  def __post_init__(self):
    checks.positive(length=self.length, words=self.words)
    checks.fraction(overlap=self.overlap)
    if not 0 <= self.window[0] <= self.window[1] <= 100:
      raise ValueError(f"window={self.window} must be two percents, the smaller first")
    if self.length < 8 * self.world.most:
      least = 8 * self.world.most
      raise ValueError(
        f"length={self.length} must be at least {least} for statements={self.world.most}"
      )

  @functools.cached_property
  def world(self) -> World:
    few = World(self.task, QUESTIONS_OF_A_STORY, law=self.law)
    most = min(few.most, self.length // 8) if self.statements is None else self.statements
    questions = min(QUESTIONS_OF_A_STORY, max(1, most // 3))
    return dataclasses.replace(few, statements=most, questions=questions)

  @functools.cached_property
  def lexicon(self) -> Lexicon:
    return lexicon("words", 4, 3, 6)

  @property
  def vocab(self) -> int:
    return self.lexicon.size + 1 + self.words

  @property
  def asked(self) -> int:
    """Ids of the question."""
    return len(QUESTIONS[self.task - 1].split())

  @property
  def chance(self) -> float:
    return 1 / self.world.locations

  @property
  def floor(self) -> float:
    """That of `Babi`."""
    return Babi(self.task, law=self.law).floor

  @property
  def state_bits(self) -> float:
    return Babi(self.task).state_bits

  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    t = start + jnp.arange(size)
    story, last = self._story(key)
    live = jnp.arange(self.world.most) <= last
    rows, lengths = self.lexicon.sentences(story.template, story.actor, story.name, story.name)
    lengths = lengths * live
    subject = story.subject[last]
    number = len(STATEMENTS) + self.task - 1
    question, _ = self.lexicon.sentences(number, subject, subject, story.before[last])

    offsets, begin = self._gaps(key, self.length - self.asked - jnp.sum(lengths), live)
    ends = jnp.cumsum(lengths)
    places = jnp.where(live, offsets + ends - lengths, self.length)
    k = jnp.searchsorted(places, t, side="right") - 1  # the last statement that has begun
    since, k = jnp.where(k < 0, self.length, t - places[k]), jnp.maximum(k, 0)
    said = rows[k, jnp.clip(since, 0, rows.shape[1] - 1)]
    text = background.load(self.text, self.words, self.lexicon, self.overlap)
    before = jnp.where(t >= places[0], ends[k], 0)
    other = jnp.asarray(text.ids)[(begin + t - before) % len(text.ids)]
    ids = jnp.where(since < lengths[k], said, other)
    to = self.length - self.asked
    ids = jnp.where(t < to, ids, question[jnp.clip(t - to, 0, self.asked - 1)])

    end = t == self.length - 1
    answer = self.lexicon.first[2] + story.answer[last]
    supports = story.supports[last]
    first = jnp.min(jnp.where(supports < 0, self.length, places[jnp.maximum(supports, 0)]))
    meta = {
      "task": jnp.int32(self.task),
      "length": jnp.int32(self.length),
      "statements": last + 1,
      "distance": self.length - 1 - first,
    }
    targets = jnp.where(end, answer, IGNORE).astype(jnp.int32)
    return Batch(ids, targets, end, jnp.int32(self.length), meta)

  def _story(self, key: jax.Array):
    """A story, and the place of the statement before the question that is asked."""
    story = self.world.tell(field(key, 0), 1)
    number = jax.random.randint(field(key, 1), (), 0, jnp.sum(story.asked))
    last = jnp.argmax(story.asked & (jnp.cumsum(story.asked) == number + 1))
    return story, last.astype(jnp.int32)

  def _gaps(self, key: jax.Array, budget: jax.Array, live: jax.Array):
    """How much of `budget` ids of text stands before each of the live statements, in order; where
    in the text it begins."""
    text = background.load(self.text, self.words, self.lexicon, self.overlap)
    starts, total, count = jnp.asarray(text.starts), len(text.ids), len(text.starts)
    sentence = jax.random.randint(field(key, 2), (), 0, count)
    begin = starts[sentence]

    def begun(ids):  # sentences of the first `ids` ids
      rounds, rest = jnp.divmod(begin + ids, total)
      return jnp.searchsorted(starts, rest) + count * rounds - sentence

    def offset(gap):
      rounds, place = jnp.divmod(sentence + gap, count)
      return jnp.minimum(starts[place] + total * rounds - begin, budget)

    low, high = (begun(budget * share // 100) for share in self.window)
    gaps = jax.random.randint(field(key, 3), live.shape, low, high + 1)
    gaps = jnp.sort(jnp.where(live, gaps, jnp.iinfo(jnp.int32).max))
    return offset(jnp.where(live, gaps, 0)), begin

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    events = replay.read_words(inputs, self.lexicon, self.world.most + 1)
    found, _ = replay.answers(events, self.task, self.world.actors, 1)
    found = jnp.where(found[0] < 0, PAD, self.lexicon.first[2] + found[0])
    return jnp.where(jnp.arange(self.length) == length - 1, found, IGNORE).astype(jnp.int32)

  def closed_book(self, batch: Batch) -> Batch:
    """The question alone."""
    kept = jnp.arange(self.length)[None] >= self.length - self.asked
    return dataclasses.replace(batch, inputs=jnp.where(kept, batch.inputs, PAD))


def grid(tasks, lengths, **settings) -> dict[tuple[int, int], BABILong]:
  """The table of tasks and lengths, by both."""
  return {
    (task, length): BABILong(task, length, **settings) for task in tasks for length in lengths
  }
