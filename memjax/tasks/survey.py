"""Questions about the whole of a stream, which no part of it answers (the competency "long-range
understanding" of "Evaluating Memory in LLM Agents via Incremental Multi-Turn Interactions", Hu,
Wang and McAuley 2025, arXiv 2507.05257; summaries and detective stories there).

Paragraphs of words; most have a topic, and words of it; some hold a statement:

    w w VOTE p o w ..  w MET p q w ..  TOPIC MET VOTE

At the end are due: the topic of most paragraphs, the person who met most others (who meets the same
one again meets nobody new), and the option with most votes. The first has m, every other fewer, any
number below; nobody has as many friends as the second, but many nearly so.

Ids: 0 padding, 1 VOTE, 2 MET, 3 TOPIC, topics, persons, options, words of each topic, other words.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stream import Streamed
from memjax.tasks.task import field

VOTE, MET, TOPIC = 1, 2, 3
NAME = 4


@dataclasses.dataclass(frozen=True)
class Survey(Streamed):
  """See the module.

  Attributes:
    paragraphs: of the stream.   size: tokens of one.
    votes: at most.   meetings: told, the same ones again included.
    topics, options, persons: that there are.   words: of each topic, and of none.

  Meta: `kind [T]`: 0 topic, 1 meetings, 2 votes.

  Raises:
    ValueError: the statements do not fit.
  """

  paragraphs: int = 256
  size: int = 64
  votes: int = 128
  meetings: int = 64
  topics: int = 8
  options: int = 8
  persons: int = 8
  words: int = 64
  number = 78

  def __post_init__(self):
    checks.positive(paragraphs=self.paragraphs, votes=self.votes, words=self.words)
    checks.positive(topics=self.topics, options=self.options)
    if self.size < 4:
      raise ValueError(f"size={self.size} must be at least 4: a word and a statement")
    if self.paragraphs < max(self.votes + self.meetings, 2 * self.topics):
      raise ValueError(
        f"paragraphs={self.paragraphs} must be at least votes={self.votes} + "
        f"meetings={self.meetings}, a statement each, and twice topics={self.topics}"
      )
    if self.votes < 2 * self.options:
      raise ValueError(f"votes={self.votes} must be at least twice options={self.options}")
    if self.persons < 4 or self.meetings < len(self._pairs):
      raise ValueError(
        f"persons={self.persons} must be at least 4, and meetings={self.meetings} at least their "
        f"{len(self._pairs)} pairs"
      )

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return self._word + (1 + self.topics) * self.words

  @property
  def _word(self) -> int:
    return NAME + self.topics + self.persons + self.options

  @property
  def _pairs(self) -> np.ndarray:
    return np.stack(np.triu_indices(self.persons, 1), axis=1).astype(np.int32)

  @property
  def _friends(self) -> int:
    """Others that the first has met."""
    return self.persons // 2 + 1

  @property
  def pieces(self) -> int:
    return self.paragraphs

  @property
  def piece(self) -> int:
    return self.size

  @property
  def asked(self) -> int:
    return 3

  @property
  def chance(self) -> float:
    return (1 / self.topics + 1 / self.persons + 1 / self.options) / 3

  @property
  def floor(self) -> float:
    """Naming what one paragraph, one meeting and one vote say, on average."""
    share = lambda n, m: m / (m + (n - 1) * (m - 1) / 2)  # noqa: E731
    topic = share(self.topics, self.paragraphs // self.topics)
    vote, m = share(self.options, self.votes // self.options), self._friends
    return (topic + m / (m + (self.persons - 1) * (m - 1)) + vote) / 3

  @property
  def state_bits(self) -> float:
    """Counters, and who met whom."""
    topics = self.topics * math.log2(1 + self.paragraphs // self.topics)
    return topics + self.options * math.log2(1 + self.votes // self.options) + len(self._pairs)

  def plan(self, key: jax.Array) -> Any:
    topics = _counts(field(key, 0), self.topics, self.paragraphs // self.topics)
    options = _counts(field(key, 1), self.options, self.votes // self.options)
    return key, topics, options, self._met(field(key, 2))

  def _met(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pairs of persons, those who met first; how many did; and who met most."""
    most, person = self._friends, draw.distinct(field(key, 0), self.persons, self.persons)
    friends = jnp.zeros(self.persons, jnp.int32).at[person[1 : 1 + most]].set(1)
    order = draw.distinct(field(key, 1), len(self._pairs), len(self._pairs))
    pairs = jnp.asarray(self._pairs)[order]

    def meet(friends, pair):
      a, b = pair
      mine = (a == person[0]) | (b == person[0])
      other = jnp.where(a == person[0], b, a)
      chosen = jnp.any(other == person[1 : 1 + most])
      free = (friends[a] < most - 1) & (friends[b] < most - 1)
      more = (~mine & free).astype(jnp.int32)
      return friends.at[pair].add(more), jnp.where(mine, chosen, free)

    _, met = jax.lax.scan(meet, friends, pairs)
    at = jnp.where(met, jnp.cumsum(met) - 1, len(pairs))
    return pairs.at[at].set(pairs, mode="drop"), jnp.sum(met), person[0]

  def part(self, plan: Any, number: jax.Array) -> jax.Array:
    key, topics, options, (pairs, known, _) = plan
    own = jax.random.fold_in(field(key, 3), number)
    places = jnp.full(2, number)
    place, turn = jax.vmap(lambda key, x: draw.permuted(key, self.paragraphs, x))(
      jax.random.split(field(key, 4)), places
    )
    topic = jnp.sum(jnp.cumsum(topics) <= place)  # `topics`: none
    drawn = jax.random.bits(field(own, 0), (self.size,), jnp.uint32).astype(jnp.int32)
    of_topic = (drawn < 0).at[0].set(True)
    drawn = drawn & (2**31 - 1)
    words = self.words * jnp.where(of_topic, topic, self.topics) + drawn % self.words
    tokens = self._word + words

    # Statements: the votes, then as many as can be no more; then the meetings.
    option = jnp.sum(jnp.cumsum(options) <= turn)
    drawn = jax.random.bits(field(own, 1), (4,), jnp.uint32).astype(jnp.int32) & (2**31 - 1)
    meeting = turn - self.votes
    again = jnp.where(meeting < known, meeting, drawn[0] % known)
    pair = pairs[jnp.clip(again, 0, len(pairs) - 1)]
    pair = NAME + self.topics + jnp.where(drawn[1] % 2 == 1, pair[::-1], pair)
    person = NAME + self.topics + drawn[2] % self.persons
    vote = jnp.stack([jnp.int32(VOTE), person, NAME + self.topics + self.persons + option])
    met = jnp.concatenate([jnp.full(1, MET), pair])
    statement = jnp.where(meeting < 0, vote, met).astype(jnp.int32)
    voted, meets = option < self.options, (meeting >= 0) & (meeting < self.meetings)
    at = 1 + drawn[3] % (self.size - 3) + jnp.arange(3)
    at = jnp.where(voted | meets, at, self.size)
    return tokens.astype(jnp.int32).at[at].set(statement, mode="drop")

  def questions(self, plan: Any):
    _, topics, options, (_, _, person) = plan
    first = jnp.stack([jnp.argmax(topics), self.topics + person, jnp.argmax(options)])
    first = first.at[2].add(self.topics + self.persons)
    return jnp.asarray([TOPIC, MET, VOTE]), NAME + first, {"kind": jnp.arange(3)}

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    told, people = inputs[: self.told], NAME + self.topics
    word = told - self._word
    named = jnp.where(word >= 0, word // self.words, self.topics)
    topic = jnp.min(named.reshape(self.paragraphs, -1), axis=1)
    topics = jnp.zeros(self.topics, jnp.int32).at[topic].add(1, mode="drop")
    second, third = jnp.roll(told, -1) - people, jnp.roll(told, -2) - people
    chosen = jnp.where(told == VOTE, third - self.persons, self.options)
    options = jnp.zeros(self.options, jnp.int32).at[chosen].add(1, mode="drop")
    second = jnp.where(told == MET, second, self.persons)
    met = jnp.zeros((self.persons, self.persons), bool).at[second, third].set(True, mode="drop")
    person = jnp.argmax(jnp.sum(met | met.T, axis=1))
    first = [jnp.argmax(topics), self.topics + person, self.topics + self.persons]
    first[2] = first[2] + jnp.argmax(options)
    answers = NAME + jnp.stack(first).astype(jnp.int32)
    return jnp.concatenate([jnp.full(self.told, -1, jnp.int32), answers])


def _counts(key: jax.Array, n: int, most: int) -> jax.Array:
  """n counts, one of them `most`, the others below it, `[n] int32`."""
  counts = jax.random.randint(field(key, 0), (n,), 0, most)
  return counts.at[jax.random.randint(field(key, 1), (), 0, n)].set(most)
