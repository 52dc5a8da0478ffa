"""Facts told over many sessions, and questions of many kinds about them: the competency "accurate
retrieval" of "Evaluating Memory in LLM Agents via Incremental Multi-Turn Interactions" (Hu, Wang
and McAuley 2025, arXiv 2507.05257), with what "LongMemEval" (Wu et al. 2024, arXiv 2410.10813) and
BEAM vary.

A session has a date, words, and statements by one of two speakers; questions follow the last one:

    DAY 7 w w A s r o w w B s r o w ..  DAY 8 w A s r o ..  K s r  K s r s r ..

| kind | due |
|---|---|
| extraction, update | the value, the last one; NONE if there was none |
| hop | r2 of r1 of s |
| count, sum, most | of a pair told in several sessions: how often, sum, day of the largest |
| on, distance | the value on a day; the days between two statements |
| contradiction | CONFLICT if two values were told on one day, else the later one |
| first, order | which of two came first; the places of some in order of time, all but the last |
| next | which of six events came next after one |

Ids: 0 padding, 1 DAY, 2 and 3 the speakers, 4 NONE, 5 CONFLICT, kinds, numerals (days too),
subjects, relations, objects, words. Differences: ids, not dialogues; days are the same in every
example, one or two or three apart; no preferences, instructions or summaries.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.session_kinds import CHAIN, KINDS, NINE, PAIRS, Choices, Read
from memjax.tasks.stream import Streamed
from memjax.tasks.task import IGNORE, Batch, field

DAY, SPEAKER, NONE, CONFLICT = 1, 2, 4, 5
KIND = 6
NAMES = tuple(KINDS)
NUMERAL = KIND + len(NAMES)


@dataclasses.dataclass(frozen=True)
class Sessions(Streamed):
  """See the module.

  Attributes:
    sessions: how many, at least 7.   size: tokens of one.
    kinds: of the questions, in their order; a kind may come again.
    most: statements that a question combines, from 2.   events: of "order", 3 to 5.
    abstain: share of the questions "extraction" and "update" about what was never told.
    noise: statements of no question in a session, at most.   others: pairs that they are about.
    numerals, subjects, relations, objects, words: that there are.

  Meta: `kind [T]`, its place in `session_kinds.KINDS`; `statements [T]` that it needs.

  Raises:
    ValueError: statements, pairs or days do not fit.
  """

  sessions: int = 16
  size: int = 128
  kinds: tuple[str, ...] = NAMES
  most: int = 6
  events: int = 3
  abstain: float = 0.125
  noise: int = 4
  others: int = 32
  numerals: int = 1024
  subjects: int = 64
  relations: int = 16
  objects: int = 256
  words: int = 1024
  number = 75

  def __post_init__(self):
    checks.positive(noise=self.noise, others=self.others, words=self.words)
    checks.fraction(abstain=self.abstain)
    for kind in self.kinds:
      checks.one_of("kinds", kind, NAMES)
    if not self.kinds or self.sessions < CHAIN:
      raise ValueError(
        f"kinds={self.kinds} must have one, and sessions={self.sessions} be at least {CHAIN}"
      )
    if not 2 <= self.most <= CHAIN or not 3 <= self.events <= 5:
      raise ValueError(f"most={self.most} must lie in 2..{CHAIN}, events={self.events} in 3..5")
    if self.size < 2 + 4 * self._lanes:
      raise ValueError(
        f"size={self.size} must be at least {2 + 4 * self._lanes} for noise={self.noise} and the "
        "statements of a session"
      )
    if self.subjects * self.relations < self._pairs or self.objects < CHAIN:
      raise ValueError(
        f"subjects={self.subjects} times relations={self.relations} must be at least "
        f"{self._pairs}, objects={self.objects} at least {CHAIN}"
      )
    if self.numerals < max(2 * self.sessions, CHAIN * NINE):
      raise ValueError(
        f"numerals={self.numerals} must be at least {max(2 * self.sessions, CHAIN * NINE)}: the "
        f"days of sessions={self.sessions}, and sums"
      )

  @property
  def _pairs(self) -> int:
    return len(self.kinds) * PAIRS + self.others

  @property
  def _lanes(self) -> int:
    """Statements of a session, at most: a question has a lane of its own, or two; so has noise."""
    return len(self.kinds) + self.kinds.count("contradiction") + self.noise

  @property
  def _starts(self) -> tuple[int, int, int, int]:
    """First ids of subjects, relations, objects and words."""
    sizes = (self.numerals, self.subjects, self.relations, self.objects)
    return tuple(NUMERAL + n for n in itertools.accumulate(sizes))  # type: ignore[return-value]

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return self._starts[-1] + self.words

  @property
  def pieces(self) -> int:
    return self.sessions

  @property
  def piece(self) -> int:
    return self.size

  @property
  def asked(self) -> int:
    return sum(KINDS[k].asked(self) + KINDS[k].due(self) for k in self.kinds)

  none, conflict = NONE, CONFLICT

  def numeral(self, n):
    """The id of a number."""
    return NUMERAL + n

  def day(self, session: jax.Array) -> jax.Array:
    """The date of a session."""
    uneven = (session * 40503 + 12345) // 256 % 2
    return 2 * session + uneven

  def _guess(self, kind: str) -> float:
    """The share of the most frequent answer."""
    if kind in ("extraction", "update"):
      return max(self.abstain, (1 - self.abstain) / self.objects)
    if kind == "sum":
      sums: dict[int, float] = {}
      for k in range(2, self.most + 1):
        for chosen in itertools.combinations(range(1, 1 + NINE), k):
          share = 1 / math.comb(NINE, k) / (self.most - 1)
          sums[sum(chosen)] = sums.get(sum(chosen), 0.0) + share
      return max(sums.values())
    if kind == "order":
      return sum(1 / n for n in range(2, self.events + 1)) / (self.events - 1)
    known = {"count": 1 / (self.most - 1), "next": 1 / (CHAIN - 1), "first": 0.5}
    known |= {"contradiction": 0.5, "most": 1 / self.sessions, "distance": 1 / self.sessions}
    return known.get(kind, 1 / self.objects)

  def _mean(self, guess) -> float:
    due = [(KINDS[k].due(self), guess(k)) for k in self.kinds]
    return sum(n * share for n, share in due) / sum(n for n, _ in due)

  @property
  def chance(self) -> float:
    return self._mean(self._guess)

  @property
  def floor(self) -> float:
    """Any value that the pair had, where it had several."""
    any_value = sum(1 / k for k in range(2, self.most + 1)) / (self.most - 1)
    told = {"update": max(self.abstain, (1 - self.abstain) * any_value), "on": any_value}
    return self._mean(lambda kind: told.get(kind, self._guess(kind)))

  @property
  def state_bits(self) -> float:
    """A value for each pair that is told."""
    pair = math.log2(self.subjects * self.relations)
    return (len(self.kinds) + self.others) * (pair + math.log2(self.objects))

  def plan(self, key: jax.Array) -> Any:
    subject, relation, _, _ = self._starts
    pairs = draw.distinct(field(key, 0), self.subjects * self.relations, self._pairs)
    pairs = jnp.stack(
      [subject + pairs // self.relations, relation + pairs % self.relations], axis=1
    )
    own, others = pairs[self.others :].reshape(-1, PAIRS, 2), pairs[: self.others]
    keys = jax.random.split(field(key, 1), len(self.kinds))
    choices = jax.vmap(self._choices)(keys, own)
    told, asked, due, lane = [], [], [], 0
    for i, kind in enumerate(self.kinds):
      mine = jax.tree.map(lambda a, i=i: a[i], choices)
      needs, question, answers = KINDS[kind].tell(self, mine)
      told.append((*needs[:2], lane + needs.second, *mine.pairs[needs.pair].T, needs.value))
      asked.append(question)
      due.append(answers)
      lane += 2 if kind == "contradiction" else 1
    told = jax.tree.map(lambda *a: jnp.stack(a), *told)  # [questions, CHAIN] each
    return key, others, told, asked, due

  def _choices(self, key: jax.Array, pairs: jax.Array) -> Choices:
    when = draw.distinct(field(key, 0), self.sessions, CHAIN)
    values = self._starts[2] + draw.distinct(field(key, 1), self.objects, CHAIN)
    numbers = 1 + draw.distinct(field(key, 2), NINE, CHAIN)
    order = draw.distinct(field(key, 3), CHAIN, CHAIN)
    bits = jax.random.bits(field(key, 4), (3,), jnp.uint32)
    count = 2 + (bits[0] % (self.most - 1)).astype(jnp.int32)
    coin, pick = bits[1] / 2.0**32, (bits[2] >> 1).astype(jnp.int32)
    return Choices(pairs, when, values, numbers, order, count, coin, pick)

  def part(self, plan: Any, number: jax.Array) -> jax.Array:
    key, others, told, _, _ = plan
    subject, _, thing, word = self._starts
    lanes, room = self._lanes, (self.size - 2) // self._lanes
    on, when, lane, *facts = (a.reshape(-1) for a in told)
    own = jax.random.fold_in(field(key, 2), number)
    of = draw.distinct(field(own, 0), lanes, lanes)[:, None]  # the lane of each place
    mine = (on & (when == number))[None] & (lane[None] == of)
    fact = jnp.stack(facts, axis=1)[jnp.argmax(mine, axis=1)]  # [lanes, 3]

    bits = jax.random.bits(field(own, 1), (lanes, 6), jnp.uint32) >> 1
    role, where, pair, form, value, there = bits.astype(jnp.int32).T
    number_or_subject = jnp.where(
      form % 4 == 2, NUMERAL + 1 + value % NINE, subject + value % self.subjects
    )
    value = jnp.where(form % 4 < 2, thing + value % self.objects, number_or_subject)
    noise = jnp.concatenate([others[pair % self.others], value[:, None]], axis=1)
    noisy = (of[:, 0] >= lanes - self.noise) & (there % 2 == 1)
    here = jnp.any(mine, axis=1)
    statement = jnp.where(here[:, None], fact, noise)
    statement = jnp.concatenate([SPEAKER + role[:, None] % 2, statement], axis=1)

    at = 2 + room * jnp.arange(lanes) + where % (room - 3)
    at = jnp.where(here | noisy, at, self.size)[:, None] + jnp.arange(4)[None]
    tokens = jax.random.randint(field(own, 2), (self.size,), word, word + self.words)
    tokens = tokens.at[:2].set(jnp.stack([DAY, self.numeral(self.day(number))]))
    return tokens.at[at].set(statement, mode="drop")

  def questions(self, plan: Any):
    _, _, told, asked, due = plan
    inputs, targets, kinds, statements = [], [], [], []
    for i, kind in enumerate(self.kinds):
      ids = [KIND + NAMES.index(kind), *asked[i]]
      inputs += ids
      targets += [IGNORE] * (len(ids) - len(due[i])) + due[i]
      kinds += [NAMES.index(kind)] * len(ids)
      statements += [jnp.sum(told[0][i])] * len(ids)
    inputs, targets, kinds, statements = (
      jnp.stack([jnp.asarray(v, jnp.int32) for v in a])
      for a in (inputs, targets, kinds, statements)
    )
    return inputs, targets, {"kind": kinds, "statements": statements}

  def evidence(self, seed: int, split: int, index: jax.Array) -> jax.Array:
    """The sessions that hold what each question needs, `[B, questions, 7] int32`, -1 for none: what
    a retriever must find. A question about what was never told needs none."""
    stream = self.stream(seed, split)

    def one(i):
      _, _, (on, when, *_), _, due = self.plan(jax.random.fold_in(stream, i))
      known = jnp.stack([answers[0] != NONE for answers in due])
      return jnp.where(on & known[:, None], when, -1)

    return jax.vmap(one)(index)

  def only_evidence(self, batch: Batch, evidence: jax.Array) -> Batch:
    """A batch in which the sessions that no question needs are padding, between the others."""
    numbers = jnp.arange(self.sessions)[None, None]
    needed = jnp.any(evidence.reshape(len(evidence), -1, 1) == numbers, axis=1)
    keep = jnp.repeat(needed, self.size, axis=1)
    keep = jnp.pad(keep, ((0, 0), (0, self.asked)), constant_values=True)
    return dataclasses.replace(batch, inputs=jnp.where(keep, batch.inputs, 0))

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    told = inputs[: self.told]
    speaks = (told == SPEAKER) | (told == SPEAKER + 1)
    most = self.sessions * self._lanes
    at = jnp.nonzero(speaks, size=most, fill_value=0)[0]
    dated = jax.lax.cummax(jnp.where(told == DAY, jnp.arange(self.told), -1))
    day = told[dated[at] + 1] - NUMERAL
    valid = jnp.arange(most) < jnp.sum(speaks)
    read = Read(valid, told[at + 1], told[at + 2], told[at + 3], day)
    targets, place = jnp.full(len(inputs), IGNORE, jnp.int32), self.told
    for kind in self.kinds:
      asked, due = KINDS[kind].asked(self), KINDS[kind].due(self)
      answers = KINDS[kind].answer(self, read, inputs[place + 1 : place + 1 + asked])
      place += asked + due
      targets = targets.at[place - due : place].set(jnp.stack(answers).astype(jnp.int32))
    return targets
