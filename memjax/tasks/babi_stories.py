"""bAbI's tasks 1 to 3 as ids (Weston et al. 2015, arXiv 1502.05698), from `babi_world`.

A story with its questions where they are asked; an answer is due at a question's last id:

    sandra went back to the garden . mary took the milk there . where is sandra ?
    move sandra garden  get mary milk  where sandra ?             (form "symbols")

Ids: 0 padding, the words (or kinds), the actors, objects and locations; answers are locations.
Difference: answers are not put into the story; all questions of a story are one example.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import babi_replay as replay
from memjax.tasks import babi_words as words
from memjax.tasks.babi_world import Story, World
from memjax.tasks.task import IGNORE, PAD, VALIDATION, Batch, Task

STORIES = 512  # for a floor
FLOORS = {(2, "files"): 0.316, (2, "code"): 0.468, (3, "files"): 0.241, (3, "code"): 0.295}


@dataclasses.dataclass(frozen=True)
class Babi(Task):
  """See the module.

  Attributes:
    task, questions, statements, actors, objects, locations, law, between: of `babi_world.World`.
    form: "words", an id a word, or "symbols", three ids a sentence.

  Meta: `question [T]`, number of the question; `statements [T]` before it; 0 elsewhere.

  Raises:
    ValueError: see `World`.
  """

  task: int = 1
  questions: int = 5
  statements: int | None = None
  actors: int = 4
  objects: int = 3
  locations: int = 6
  law: str = "files"
  between: int = 2
  form: str = "words"
  number = 30

  def __post_init__(self):
    checks.one_of("form", self.form, words.FORMS)
    _ = self.world

  @functools.cached_property
  def world(self) -> World:
    names = (field.name for field in dataclasses.fields(World))
    return World(**{name: getattr(self, name) for name in names})

  @functools.cached_property
  def lexicon(self) -> words.Lexicon:
    return words.lexicon(self.form, self.actors, self.objects, self.locations)

  @property
  def vocab(self) -> int:
    return self.lexicon.size

  @property
  def length(self) -> int:
    """T: room for a story's longest form."""
    if self.form == "symbols":
      return 3 * (self.world.most + self.questions)
    question = len(words.QUESTIONS[self.task - 1].split())
    return replay.SPAN * self.world.most + question * self.questions

  @property
  def chance(self) -> float:
    return 1 / self.locations

  @property
  def floor(self) -> float:
    """Of the location that was told last and that the question does not name; for tasks 2 and 3
    measured on 512 stories of five questions."""
    names = self.actors, self.objects, self.locations
    if self.task > 1 and names == (4, 3, 6) and self.between == 2:
      return FLOORS[self.task, self.law]
    return _floor(dataclasses.replace(self.world, questions=5, statements=None))

  @property
  def state_bits(self) -> float:
    place = math.log2(self.locations)
    thing = math.log2(self.locations + self.actors)
    parts = (self.actors * place, self.objects * thing, self.objects * place)
    return sum(parts[: self.task])

  def example(self, key: jax.Array) -> Batch:
    world, most = self.world, self.world.most
    story = world.tell(key)
    statements, said = self.lexicon.sentences(story.template, story.actor, story.name, story.name)
    question = len(words.STATEMENTS) + self.task - 1
    asked = jnp.full(most, question), story.subject, story.subject, story.before
    questions, length = self.lexicon.sentences(*asked)
    wide = max(statements.shape[1], questions.shape[1])
    fits = lambda rows: jnp.pad(rows, ((0, 0), (0, wide - rows.shape[1])))  # noqa: E731
    rows = jnp.stack([fits(statements), fits(questions)], axis=1).reshape(2 * most, wide)
    live = jnp.arange(most) < story.count
    asked = story.asked & live
    lengths = jnp.stack([said * live, length * asked], axis=1).reshape(-1)
    inputs, ends = words.pack(rows, lengths, self.length)

    place = jnp.where(asked, ends[1::2] - 1, self.length)
    beside = lambda values, rest: jnp.full(self.length, rest).at[place].set(values, mode="drop")  # noqa: E731
    targets = beside(self.lexicon.first[2] + story.answer, IGNORE)
    meta = {
      "question": beside(jnp.cumsum(asked) - 1, 0),
      "statements": beside(jnp.arange(1, most + 1), 0),
    }
    return Batch(inputs, targets, targets != IGNORE, ends[-1], meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    lexicon, size = self.lexicon, self.world.most + self.questions
    if self.form == "symbols":
      events = replay.read_symbols(inputs, lexicon)
    else:
      events = replay.read_words(inputs, lexicon, size)
    found, place = replay.answers(events, self.task, self.actors, self.questions)
    found = jnp.where(found < 0, PAD, lexicon.first[2] + found)
    return jnp.full(self.length, IGNORE).at[place].set(found, mode="drop")

  def closed_book(self, batch: Batch) -> Batch:
    """The questions alone."""
    if self.form == "symbols":
      asks = batch.mask.reshape(len(batch.mask), -1, 3)
      kept = jnp.broadcast_to(jnp.any(asks, axis=2, keepdims=True), asks.shape)
      kept = kept.reshape(batch.mask.shape)
    else:
      stop, asks = (self.lexicon.ids[sign] for sign in (".", "?"))
      at = jnp.arange(self.length)[None]
      end = (batch.inputs == stop) | (batch.inputs == asks)
      end = jax.lax.cummin(jnp.where(end, at, self.length - 1), axis=1, reverse=True)
      kept = jnp.take_along_axis(batch.inputs, end, axis=1) == asks
    return dataclasses.replace(batch, inputs=jnp.where(kept, batch.inputs, PAD))


@functools.lru_cache(maxsize=64)
def _floor(world: World) -> float:
  if world.task == 1:
    return floor_of_moves(world)
  stream = Babi(world.task).stream(0, VALIDATION)
  tell = lambda i: world.tell(jax.random.fold_in(stream, i))  # noqa: E731
  return guess_last(world, jax.jit(jax.vmap(tell))(jnp.arange(STORIES)))


def floor_of_moves(world: World) -> float:
  """Task 1: 1 / K of the time the last actor is asked, of K that were told; another stands at the
  same location by chance."""
  told = np.zeros(world.actors + 1)  # the chances of K
  told[0], known = 1, np.arange(world.actors + 1)
  found = []
  for _ in range(world.questions):
    for _ in range(world.between):
      fresh = told * (1 - known / world.actors)
      told = told - fresh + np.roll(fresh, 1)
    last = np.sum(told[1:] / known[1:])
    found.append(last + (1 - last) / world.locations)
  return float(np.mean(found))


def guess_last(world: World, stories: Story) -> float:
  """How often the location that was told last, and that the question does not name, is the answer
  in stories with a batch axis."""
  kind, name, asked = (np.asarray(a) for a in (stories.kind, stories.name, stories.asked))
  before = np.asarray(stories.before)[..., None]
  moved = (kind == words.MOVE)[..., None] & (name[..., None] != np.arange(-1, world.locations))
  at = np.where(moved, np.arange(kind.shape[1])[:, None], 0)
  last = np.take_along_axis(np.maximum.accumulate(at, axis=1), before + 1, axis=2)[..., 0]
  guess = np.take_along_axis(name, last, axis=1)
  return float(np.mean((guess == np.asarray(stories.answer))[asked]))
