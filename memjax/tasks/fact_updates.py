"""Facts that change ("MemoryPrompt", Rakotonirina and Baroni 2024, arXiv 2402.15268): what was said
last?

A conversation of turns, each of `block` facts `s r o .`; some facts, the pivots, are told once and
then updated u times with other objects, in turns of their own; after the last turn each is asked,
`ASK s r`, and the object told last is due at r. All else are distractors: facts about other pairs,
and for each pivot one with its relation and one with its subject at least.

Differences: ids in place of templates of words, so no examples of the relation stand before a
question and an answer is one token; distractors may be told more than once, and change, too.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field
from memjax.tasks.triples import FACT, QUESTION, Words, newest


@dataclasses.dataclass(frozen=True)
class FactUpdates(Task):
  """See the module.

  Attributes:
    turns: of the conversation.   block: facts in each.   pivots: facts that are asked.
    updates: least and most times that a pivot changes, drawn evenly.
    subjects, relations: their numbers.   objects: of each relation.

  Meta: `updates [T]`, how often the asked fact changed; `age [T]`, turns since it was told last.

  Raises:
    ValueError: the facts do not fit into the turns.
  """

  turns: int = 10
  block: int = 5
  pivots: int = 1
  updates: tuple[int, int] = (0, 4)
  subjects: int = 200
  relations: int = 16
  objects: int = 64
  number = 52

  def __post_init__(self):
    checks.positive(turns=self.turns, block=self.block, pivots=self.pivots)
    least, most = self.updates
    if not 0 <= least <= most < min(self.turns, self.objects):
      raise ValueError(
        f"updates={self.updates} must be 0 <= least <= most < turns={self.turns} and "
        f"objects={self.objects}: a turn and an object for each"
      )
    if self.pivots > min(self.block, self.subjects - 1, self.relations - 1):
      raise ValueError(
        f"pivots={self.pivots} must not exceed block={self.block}, and must be below "
        f"subjects={self.subjects} and relations={self.relations}"
      )
    if self.facts < (most + 3) * self.pivots:
      raise ValueError(f"turns={self.turns} of block={self.block} lack room for 2 distractors each")

  @property
  def words(self) -> Words:
    return Words(self.subjects, self.relations, self.objects)

  @property
  def facts(self) -> int:
    """Facts of a conversation."""
    return self.turns * self.block

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return self.words.vocab

  @property
  def told(self) -> int:
    """Tokens before the questions."""
    return FACT * self.facts

  @property
  def chance(self) -> float:
    return 1 / self.objects

  @property
  def floor(self) -> float:
    """The better of two: one of the values that the fact ever had, or the object of its kind that
    was told last, whose subject is not known. The latter's figure is near, not exact."""
    least, most = self.updates
    each = [self._latest(u) for u in range(least, most + 1)]
    ever = [1 / (1 + u) for u in range(least, most + 1)]
    return max(sum(each), sum(ever)) / len(each)

  def _latest(self, updates: int) -> float:
    """Share of pivots with so many updates after which no distractor had their relation."""
    n, told = self.turns, 1 + updates
    free = self.facts - told * self.pivots
    other = (self.subjects - 1) / (self.words.pairs - self.pivots)
    random = max(0, free - 2 * self.pivots) / (self.facts - told)
    total = 0.0
    for turn in range(told, n + 1):  # the last of them
      weight = math.comb(turn - 1, told - 1) / math.comb(n, told) / self.block
      for place in range(self.block):
        later = self.block * (n - turn) + self.block - 1 - place
        kept = (1 - other * random) ** later
        total += weight * kept * max(0, 1 - later / (self.facts - told))
    return total

  @property
  def state_bits(self) -> float:
    return min(self.facts, self.words.pairs) * self.words.bits

  def example(self, key: jax.Array) -> Batch:
    words, p, facts = self.words, self.pivots, self.facts
    least, most = self.updates
    subject = draw.distinct(field(key, 0), self.subjects, p)
    relation = draw.distinct(field(key, 1), self.relations, p)
    pivot = subject * self.relations + relation
    count = jax.random.randint(field(key, 2), (p,), least, most + 1)

    # Where pivots are told: as many turns as they need, in order, each at a place of its own there.
    each = jax.vmap(lambda key: draw.distinct(key, self.turns, most + 1))
    turn = each(jax.random.split(field(key, 3), p))
    told = jnp.arange(most + 1)[None] <= count[:, None]
    turn = jnp.sort(jnp.where(told, turn, self.turns), axis=1)
    spread = jax.vmap(lambda key: draw.distinct(key, self.block, p))
    spot = spread(jax.random.split(field(key, 4), self.turns))[turn, jnp.arange(p)[:, None]]
    place = jnp.where(turn < self.turns, turn * self.block + spot, facts)  # [P, most + 1]

    pick = jax.vmap(lambda key: draw.distinct(key, self.objects, most + 1))
    value = pick(jax.random.split(field(key, 5), p))
    other = jax.random.randint(field(key, 6), (facts,), 0, words.pairs - p)
    pair = draw.skipping(other, jnp.sort(pivot)).at[place].set(pivot[:, None], mode="drop")
    said = jax.random.randint(field(key, 7), (facts,), 0, self.objects)
    said = said.at[place].set(value, mode="drop")

    # Of the places left two a pivot: its relation with another subject, its subject with another.
    taken = jnp.zeros(facts, jnp.uint32).at[place].set(1, mode="drop")
    left = jnp.argsort(jax.random.bits(field(key, 8), (facts,)) >> 1 | taken << 31)[: 2 * p]
    step = jax.random.randint(field(key, 9), (p,), 1, self.subjects)
    turned = jax.random.randint(field(key, 10), (p,), 1, self.relations)
    alike = (subject + step) % self.subjects * self.relations + relation
    own = subject * self.relations + (relation + turned) % self.relations
    pair = pair.at[left].set(jnp.concatenate([alike, own]))

    due = words.value(pivot, jnp.take_along_axis(value, count[:, None], axis=1)[:, 0])
    last = jnp.take_along_axis(turn, count[:, None], axis=1)[:, 0]
    inputs = jnp.concatenate([words.facts(pair, said), words.questions(pivot)])
    nothing = jnp.zeros(len(inputs), jnp.int32)
    at = self.told + QUESTION * (1 + jnp.arange(p)) - 1
    targets = (nothing + IGNORE).at[at].set(due)
    meta = {
      "updates": nothing.at[at].set(count),
      "age": nothing.at[at].set(self.turns - 1 - last),
    }
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(len(inputs)), meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    due = newest(inputs[: self.told], inputs[self.told :])
    nothing = jnp.full((self.pivots, QUESTION), IGNORE, jnp.int32)
    return jnp.concatenate([jnp.full(self.told, IGNORE), nothing.at[:, -1].set(due).reshape(-1)])

  def closed_book(self, batch: Batch) -> Batch:
    """The questions without the facts."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, : self.told].set(PAD))
