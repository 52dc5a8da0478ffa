"""Facts that contradict earlier ones, asked directly or through each other (the competency
"conflict resolution", FactConsolidation, of "Evaluating Memory in LLM Agents via Incremental
Multi-Turn Interactions", Hu, Wang and McAuley 2025, arXiv 2507.05257).

Lines of a number, a subject, a relation and an object; a later line overrides an earlier one of the
same subject and relation. Then questions of `hops` relations: what is r2 of r1 of s?

    0 0 0 0 s r o  0 0 0 1 s r o ..  ASK s r1 r2  ASK s r1 r2 ..

The first relation of each question was updated, and the old and the new object have different
answers: who keeps the first, or cannot go on from the new one, is wrong.

Ids: 0 padding, 1 ASK, ten digits, entities (subjects and objects), relations. Difference: ids, not
sentences; every question's first fact is told twice.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stream import Streamed
from memjax.tasks.task import IGNORE, field

ASK, DIGIT = 1, 2
ENTITY = DIGIT + 10


@dataclasses.dataclass(frozen=True)
class Consolidation(Streamed):
  """See the module.

  Attributes:
    facts: lines.   queries: questions.   hops: relations of a question.
    serial: lines begin with their number, from 0; False: order alone tells.   digits: of it.
    entities, relations: that there are; half of the entities are in no question.

  Meta: `age [T]`, lines between the update and the end of the stream.

  Raises:
    ValueError: the lines of the questions do not fit, or there are too few entities or digits.
  """

  facts: int = 64
  queries: int = 4
  hops: int = 2
  serial: bool = True
  digits: int = 4
  entities: int = 256
  relations: int = 16
  number = 76

  def __post_init__(self):
    checks.positive(facts=self.facts, queries=self.queries, hops=self.hops, digits=self.digits)
    checks.positive(entities=self.entities, relations=self.relations)
    if self.facts < 2 * self.hops * self.queries:
      raise ValueError(
        f"facts={self.facts} must be at least {2 * self.hops * self.queries}: 2 hops a question"
      )
    least = 2 * self.queries * (1 + 2 * self.hops)
    if self.entities < least or self.relations < 2:
      raise ValueError(
        f"entities={self.entities} must be at least {least}, relations={self.relations} at least 2"
      )
    if self.serial and self.facts > 10**self.digits:
      raise ValueError(f"digits={self.digits} must be able to number facts={self.facts}")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return ENTITY + self.entities + self.relations

  @property
  def pieces(self) -> int:
    return self.facts

  @property
  def piece(self) -> int:
    return 3 + (self.digits if self.serial else 0)

  @property
  def asked(self) -> int:
    return self.queries * (2 + self.hops)

  @property
  def chance(self) -> float:
    return 1 / self.entities

  @property
  def floor(self) -> float:
    """The answer of the old or of the new fact."""
    return 0.5

  @property
  def state_bits(self) -> float:
    """An object for each subject and relation that was told, on average."""
    keys = self.entities * self.relations
    return keys * (1 - (1 - 1 / keys) ** self.facts) * math.log2(self.entities)

  def plan(self, key: jax.Array) -> Any:
    q, hops = self.queries, self.hops
    names = draw.distinct(field(key, 0), self.entities, self.entities)
    relations = jax.random.randint(field(key, 1), (q, hops), 0, self.relations)
    places = draw.distinct(field(key, 2), self.facts, q * 2 * hops).reshape(q, 2, hops)
    # Of each question an old and a new chain; the first fact of the old one comes first.
    places = places.at[:, :, 0].set(jnp.sort(places[:, :, 0], axis=1))
    return key, names, relations, places

  def _chains(self) -> jax.Array:
    """Entities of each question's chains, by place in `names`, `[queries, 2, hops + 1]`: both begin
    with the same one."""
    each = 1 + 2 * self.hops
    first = each * jnp.arange(self.queries)[:, None, None]
    own = 1 + jnp.arange(2 * self.hops).reshape(1, 2, self.hops)
    begin = jnp.broadcast_to(first, (self.queries, 2, 1))
    return jnp.concatenate([begin, first + own], axis=-1)

  def part(self, plan: Any, number: jax.Array) -> jax.Array:
    key, names, relations, places = plan
    chains = self._chains()
    here = (places == number).reshape(-1)
    told = jnp.any(here)
    at = jnp.argmax(here)
    subjects, objects = chains[..., :-1].reshape(-1), chains[..., 1:].reshape(-1)
    used = jnp.broadcast_to(relations[:, None], places.shape).reshape(-1)

    # A line of no question: any relation of its subject but the one that a question goes through.
    own = jax.random.fold_in(field(key, 3), number)
    subject = jax.random.randint(field(own, 0), (), 0, self.entities)
    taken = jnp.max(jnp.where(subjects == subject, used, -1))
    free = jax.random.randint(field(own, 1), (), 0, self.relations)
    other = taken + 1 + jax.random.randint(field(own, 2), (), 0, self.relations - 1)
    free = jnp.where(taken < 0, free, other % self.relations)
    target = jax.random.randint(field(own, 3), (), 0, self.entities)

    subject = ENTITY + names[jnp.where(told, subjects[at], subject)]
    relation = ENTITY + self.entities + jnp.where(told, used[at], free)
    target = ENTITY + names[jnp.where(told, objects[at], target)]
    line = jnp.stack([subject, relation, target])
    if not self.serial:
      return line
    return jnp.concatenate([DIGIT + number // self._tens % 10, line])

  @property
  def _tens(self) -> jax.Array:
    return 10 ** jnp.arange(self.digits - 1, -1, -1)

  def questions(self, plan: Any):
    _, names, relations, places = plan
    chains = names[self._chains()]
    ask = jnp.full((self.queries, 1), ASK, jnp.int32)
    parts = [ask, ENTITY + chains[:, 0, :1], ENTITY + self.entities + relations]
    inputs = jnp.concatenate(parts, axis=1)
    targets = jnp.full(inputs.shape, IGNORE, jnp.int32).at[:, -1].set(ENTITY + chains[:, 1, -1])
    age = jnp.broadcast_to((self.facts - places[:, 1, 0])[:, None], inputs.shape)
    return inputs.reshape(-1), targets.reshape(-1), {"age": age.reshape(-1)}

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    lines = inputs[: self.told].reshape(self.facts, -1)
    numbers = jnp.arange(self.facts)
    if self.serial:
      numbers = (lines[:, : self.digits] - DIGIT) @ self._tens
    subjects, relations, objects = lines[:, -3], lines[:, -2], lines[:, -1]
    asked = inputs[self.told :].reshape(self.queries, -1)
    entity = asked[:, 1]
    for hop in range(self.hops):
      same = subjects[None] == entity[:, None]
      same = same & (relations[None] == asked[:, 2 + hop, None])
      entity = objects[jnp.argmax(jnp.where(same, numbers[None], -1), axis=1)]
    answers = jnp.full(asked.shape, IGNORE, jnp.int32).at[:, -1].set(entity)
    return jnp.concatenate([jnp.full(self.told, IGNORE, jnp.int32), answers.reshape(-1)])
