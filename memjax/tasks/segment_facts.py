"""Facts in a long text, asked at its end: memorise, detect and memorise, reason ("Scaling
Transformer to 1M tokens and beyond with RMT", Bulatov et al. 2023, arXiv 2304.11062).

    john went back to the garden . t t t t  ..  t t t where is john ?                "start"
    t t t t t t john went back to the garden . t  ..  t t t where is john ?          "anywhere"
    t the office is north of the garden . t t the garden is north of the kitchen . t ..
      .. t t what is the garden south of ?                                            "reason"

The text has `segments` pieces of `segment` ids each; facts and question overwrite it. Its own ids,
disjoint from the words, follow each other by a fixed table: each two ids have 16 followers, so that
a next one takes 4 bits. Answers are locations. Ids: 0 padding, words, names, text.

In "reason" three locations lie in a row; each fact tells of two neighbours, and one is asked for,
as it was told or the other way round; as in the authors' file it is the fact's first.

Differences: ids of our own text, where the authors have books; the text begins anew with every
segment, so that any stretch costs what it has tokens (`chunk`); nothing is put before a segment,
where theirs have [CLS]; answers are ids at the question's end, not classes of a document.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.babi_words import MOVES, Lexicon
from memjax.tasks.stretches import Stretches
from memjax.tasks.task import IGNORE, PAD, Batch, field

MODES = ("start", "segment_start", "anywhere", "reason")
DIRECTIONS = ("north", "south", "east", "west")  # opposites are neighbours
ACTORS, LOCATIONS = 4, 6
TOLD = tuple(f"A {verb} to the L ." for verb in MOVES)
BESIDE = tuple(f"the L is {way} of the M ." for way in DIRECTIONS)
FORWARD = tuple(f"what is {way} of the L ?" for way in DIRECTIONS)
BACKWARD = tuple(f"what is the L {way} of ?" for way in DIRECTIONS)
LONGEST = 8  # ids of a fact
TEXT = 256  # ids
FOLLOWERS = 16  # of each two ids


@dataclasses.dataclass(frozen=True)
class SegmentFacts(Stretches):
  """See the module.

  Attributes:
    mode: where facts stand. "start": at the text's start (memorise); "segment_start": at that of a
      drawn segment (detect and memorise, as published); "anywhere"; "reason": each of two at the
      start of a segment of its own.
    segments: of the text.   segment: ids of one.
    facts: how many are told, of different actors; one is asked. "reason" has two.

  Meta: `back [T]`, segments from the asked fact's to the last; `distance [T]` in ids; 0 elsewhere.

  Raises:
    ValueError: facts and question do not fit into a segment, or there are more facts than actors.
  """

  mode: str = "anywhere"
  segments: int = 2
  segment: int = 64
  facts: int = 1
  number = 31

  def __post_init__(self):
    checks.one_of("mode", self.mode, MODES)
    checks.positive(segments=self.segments, segment=self.segment, facts=self.facts)
    if self.facts > ACTORS:
      raise ValueError(f"facts={self.facts} must be at most {ACTORS}, one an actor")
    if self.reasons and self.facts != 1:
      raise ValueError(f"facts={self.facts} must be 1 in mode='reason', which tells two of its own")
    least = LONGEST * self.told + self.asked
    if self.segment < least:
      raise ValueError(f"segment={self.segment} must be at least {least} for facts and question")

  @property
  def reasons(self) -> bool:
    return self.mode == "reason"

  @property
  def told(self) -> int:
    """Facts in the text."""
    return 2 if self.reasons else self.facts

  @property
  def asked(self) -> int:
    """Ids of the question."""
    return 7 if self.reasons else 4

  @property
  def length(self) -> int:
    return self.segments * self.segment

  @functools.cached_property
  def lexicon(self) -> Lexicon:
    sentences = (*BESIDE, *FORWARD, *BACKWARD) if self.reasons else (*TOLD, "where is A ?")
    return Lexicon(sentences, 0 if self.reasons else ACTORS, 0, LOCATIONS)

  @property
  def vocab(self) -> int:
    return self.lexicon.size + TEXT

  @property
  def chance(self) -> float:
    return 1 / LOCATIONS

  @property
  def floor(self) -> float:
    """Of who reads the last segment only; or, with several facts, who keeps only the locations
    ("reason": the facts' first ones but the one the question names)."""
    near = 0.0 if self.mode == "start" or self.segments == 1 else 1 / self.segments
    last = near + (1 - near) / LOCATIONS
    some = 1 / self.told + (1 - 1 / self.told) / LOCATIONS if self.told > 1 else 0.0
    return max(last, 0.75 if self.reasons else some)

  @property
  def state_bits(self) -> float:
    if self.reasons:  # three in a row along an axis, either way round
      return math.log2(2 * LOCATIONS * (LOCATIONS - 1) * (LOCATIONS - 2))
    return self.facts * (math.log2(ACTORS) + math.log2(LOCATIONS))

  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    facts, question, answer, which = (self._row if self.reasons else self._moves)(key)
    rows, lengths = facts
    places = self._places(key, lengths)
    t = start + jnp.arange(size)
    ids = self._text(field(key, 9), start, size)
    begin = jnp.append(places, self.length - self.asked)
    rows = jnp.concatenate([rows, jnp.pad(question, (0, LONGEST - len(question)))[None]])
    for place, row, long in zip(begin, rows, jnp.append(lengths, self.asked), strict=True):
      inside = (t >= place) & (t < place + long)
      ids = jnp.where(inside, row[jnp.clip(t - place, 0, LONGEST - 1)], ids)

    end = t == self.length - 1
    place = places[which]
    answer = self.lexicon.first[2] + answer
    targets = jnp.where(end, answer, IGNORE).astype(jnp.int32)
    meta = {
      "back": jnp.where(end, self.segments - 1 - place // self.segment, 0),
      "distance": jnp.where(end, self.length - 1 - place, 0),
    }
    return Batch(ids, targets, end, jnp.int32(self.length), meta)

  def _moves(self, key: jax.Array):
    """Facts about actors: their ids and lengths; the question; the answer; which fact has it."""
    n = self.facts
    actor = draw.distinct(field(key, 0), ACTORS, n)
    verb = jax.random.randint(field(key, 1), (n,), 0, len(TOLD))
    location = jax.random.randint(field(key, 2), (n,), 0, LOCATIONS)
    which = jax.random.randint(field(key, 3), (), 0, n)
    rows, lengths = self.lexicon.sentences(verb, actor, 0, location)
    question, _ = self.lexicon.sentences(len(TOLD), actor[which], 0, 0)
    rows = jnp.pad(rows, ((0, 0), (0, LONGEST - rows.shape[1])))
    return (rows, lengths), question[: self.asked], location[which], which

  def _row(self, key: jax.Array):
    """Facts about three locations in a row: as `_moves`."""
    row = draw.distinct(field(key, 0), LOCATIONS, 3)
    bits = jax.random.bernoulli(field(key, 1), 0.5, (6,)).astype(jnp.int32)
    flip, which, backward, way = bits[:2], bits[2], bits[3], 2 * bits[4] + bits[5]
    near, far = row[:2], row[1:]  # far is `way` of near
    first, second = jnp.where(flip, near, far), jnp.where(flip, far, near)
    facts = self.lexicon.sentences(way ^ flip, 0, 0, first, second)
    told = way ^ flip[which]
    asks = len(BESIDE) + jnp.where(backward, len(FORWARD) + (told ^ 1), told)
    question, _ = self.lexicon.sentences(asks, 0, 0, second[which])
    return facts, question[: self.asked], first[which], which

  def _places(self, key: jax.Array, lengths: jax.Array) -> jax.Array:
    """Where facts begin, `[facts]`."""
    before = jnp.cumsum(lengths) - lengths
    if self.mode == "start":
      return before
    if self.mode == "anywhere":
      free = self.length - self.asked - jnp.sum(lengths)
      return jnp.sort(jax.random.randint(field(key, 4), lengths.shape, 0, free + 1)) + before
    if self.mode == "segment_start":
      return jax.random.randint(field(key, 4), (), 0, self.segments) * self.segment + before
    segment = jax.random.randint(field(key, 4), (2,), 0, self.segments)
    both = (segment == segment[0]) & (jnp.arange(2) == 1)
    return segment * self.segment + jnp.where(both, before, 0)

  def _text(self, key: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    """Ids start .. start + size - 1 of the text below facts and question."""
    first = start // self.segment
    aligned = isinstance(start, int) and start % self.segment == 0
    count = -(-size // self.segment) + (not aligned)
    dice = jax.vmap(
      lambda n: jax.random.bits(jax.random.fold_in(key, n), (self.segment + 2,), jnp.uint8)
    )(first + jnp.arange(count)).astype(jnp.uint32)

    def follow(last, die):
      older, newer = last
      # Murmur's mixing is the table.
      new = draw.mix((older << 12) | (newer << 4) | (die % FOLLOWERS)) % TEXT
      return (newer, new), new

    _, ids = jax.lax.scan(follow, (dice[:, 0], dice[:, 1]), dice[:, 2:].T)
    ids = self.lexicon.size + ids.T.reshape(-1).astype(jnp.int32)
    return jax.lax.dynamic_slice(ids, (start - first * self.segment,), (size,))

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    found = (self._reason if self.reasons else self._recall)(inputs)
    return jnp.where(jnp.arange(self.length) == length - 1, found, IGNORE).astype(jnp.int32)

  def _recall(self, ids: jax.Array) -> jax.Array:
    """The first location behind the asked actor's name."""
    at = jnp.arange(self.length)
    name = jnp.argmax((ids == ids[-2]) & (at < self.length - self.asked))
    first = self.lexicon.first[2]
    place = jnp.argmax((at > name) & (ids >= first) & (ids < first + LOCATIONS))
    return jnp.where(name == place, PAD, ids[place])

  def _reason(self, ids: jax.Array) -> jax.Array:
    """The location that a fact, or its opposite, puts beside the one asked about."""
    way, at = jnp.full_like(ids, -1), jnp.arange(self.length)
    for i, name in enumerate(DIRECTIONS):
      way = jnp.where(ids == self.lexicon.ids[name], i, way)
    told = (way >= 0) & (at < self.length - self.asked)
    first, second = jnp.roll(ids, 2), jnp.roll(ids, -3)
    forward = ids[-3] == self.lexicon.ids["the"]  # what is `way` of the L ?
    asked = jnp.where(forward, way[-5], way[-3])
    known = jnp.where(forward, ids[-2], ids[-4])
    # first is `way` of second; wanted: x is `asked` of known, or known is `asked` of x.
    same = jnp.where(forward, second, first) == known
    turned = jnp.where(forward, first, second) == known
    straight, turn = told & same & (way == asked), told & turned & (way == asked ^ 1)
    answer = jnp.where(straight == forward, first, second)
    found = straight | turn
    return jnp.where(jnp.any(found), answer[jnp.argmax(found)], PAD)

  def closed_book(self, batch: Batch) -> Batch:
    """The question alone."""
    kept = jnp.arange(self.length)[None] >= self.length - self.asked
    return dataclasses.replace(batch, inputs=jnp.where(kept, batch.inputs, PAD))
