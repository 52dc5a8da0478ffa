"""The supervised ones of the games of "POPGym" (Morad et al. 2023, arXiv 2303.01859): what comes
next does not depend on the actions, so that each is a sequence with the right action at each step.

    RepeatFirst     s0 s1 s2 ..              s0 s0 s0 ..            the first suit, at every step
    RepeatPrevious  s0 s1 s2 ..              .. s(t-k+1) ..         k - 1 steps before this one
    Autoencode      s0 s1 .. s(n-1) . . .    s(n-1) s(n-2) .. s0    backwards, from the last one on
    CountRecall     (v0, q0) (v1, q1) ..     how many of v0 .. vt are qt

Cards are dealt from `decks` of 52, shuffled together, without replacement; `iid=True` draws each
anew, so that nothing can be told from what is left. `returns` is the games' own score, in [-1, 1]:
an episode's steps are worth 1/N each, or -1/N. Numbers of decks for easy, medium and hard:
RepeatFirst 1, 8, 16; RepeatPrevious 1, 2, 3 with k = 4, 32, 64; Autoencode 1, 2, 3; CountRecall 1,
2, 4 of colours, suits, ranks.

Differences: none in what is seen and due. As in the authors' code, and unlike its descriptions,
RepeatFirst marks no step as first, k counts the card in view, and the last card of Autoencode
already says that play begins.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, counts, field

CARDS, SUITS = 52, 4
KINDS = {"colours": 2, "suits": 4, "ranks": 13}


def returns(actions: jax.Array, batch: Batch) -> jax.Array:
  """The return of each episode in [-1, 1], `[B] float32`, of `actions [B, T]`."""
  right, due = counts(actions, batch)
  return 2 * right / due - 1


class Game(Task):
  """What the games share.

  Attributes:
    decks: of 52 cards.   iid: cards are drawn with replacement.
  """

  decks: int
  iid: bool

  @property
  def cards(self) -> int:
    """Cards of all decks."""
    return CARDS * self.decks

  @property
  def chance(self) -> float:
    return 1 / self.outputs_size

  def dealt(self, key: jax.Array, kinds: int) -> jax.Array:
    """The kind of each card in the order of the deck, `[cards] int32`."""
    if self.iid:
      return jax.random.randint(key, (self.cards,), 0, kinds)
    return draw.distinct(key, self.cards, self.cards) % kinds

  @abc.abstractmethod
  def hidden(self, inputs: jax.Array) -> jax.Array:
    """Inputs `[B, T]` without what the answers depend on."""

  def closed_book(self, batch: Batch) -> Batch:
    return dataclasses.replace(batch, inputs=self.hidden(batch.inputs))

  def _unlike(self) -> float:
    """The chance that another card of the deck has a given suit that is not this one's."""
    return 1 / SUITS if self.iid else self.cards / SUITS / (self.cards - 1)


@dataclasses.dataclass(frozen=True)
class RepeatFirst(Game):
  """The suit of the first card at every step; see the module. Meta: `age [T]` of that card."""

  decks: int = 1
  iid: bool = False
  vocab: int = SUITS
  number = 18

  def __post_init__(self):
    checks.positive(decks=self.decks)

  @property
  def floor(self) -> float:
    """Of who always names another suit than the one in view, or always that one."""
    steps = self.cards - 1
    same = 1 - (SUITS - 1) * self._unlike()
    return max((steps - 1) * self._unlike(), 1 + (steps - 1) * same) / steps

  @property
  def state_bits(self) -> float:
    return math.log2(SUITS)

  def example(self, key: jax.Array) -> Batch:
    suits = self.dealt(field(key, 0), SUITS)[:-1]
    targets = jnp.full_like(suits, suits[0])
    age = {"age": jnp.arange(suits.size)}
    return Batch(suits, targets, targets != IGNORE, jnp.int32(suits.size), age)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(inputs.size) < length, inputs[0], IGNORE)

  def hidden(self, inputs: jax.Array) -> jax.Array:
    return inputs.at[:, 0].set(0)


@dataclasses.dataclass(frozen=True)
class RepeatPrevious(Game):
  """The suit seen k - 1 steps ago, once there is one; see the module. Meta: none."""

  decks: int = 1
  k: int = 4
  iid: bool = False
  vocab: int = SUITS
  number = 19

  def __post_init__(self):
    checks.positive(decks=self.decks, k=self.k)
    if not 2 <= self.k < self.cards:
      raise ValueError(f"k={self.k} must lie in 2..{self.cards - 1}: 1 is the card in view")

  @property
  def floor(self) -> float:
    """Of who always names another suit than the one in view."""
    return self._unlike()

  @property
  def state_bits(self) -> float:
    return (self.k - 1) * math.log2(SUITS)

  def example(self, key: jax.Array) -> Batch:
    suits = self.dealt(field(key, 0), SUITS)[:-1]
    mask = jnp.arange(suits.size) >= self.k - 1
    targets = jnp.where(mask, jnp.roll(suits, self.k - 1), IGNORE)
    return Batch(suits, targets, mask, jnp.int32(suits.size), {})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length

    def step(queue, suit):
      queue = jnp.concatenate([queue[1:], suit[None]])
      return queue, queue[0]

    return jax.lax.scan(step, jnp.full(self.k, IGNORE, jnp.int32), inputs)[1]

  def hidden(self, inputs: jax.Array) -> jax.Array:
    return jnp.zeros_like(inputs)


@dataclasses.dataclass(frozen=True)
class Autoencode(Game):
  """All suits backwards, after the last; see the module. An input is 4 watch + suit; in play the
  suit is 0, always the same. Meta: `age [T]` in cards of the one that is due."""

  decks: int = 1
  iid: bool = False
  vocab: int = 2 * SUITS
  number = 20

  def __post_init__(self):
    checks.positive(decks=self.decks)

  @property
  def outputs_size(self) -> int:
    return SUITS

  @property
  def floor(self) -> float:
    """Of who names the one card in view, and then any."""
    return (1 + (self.cards - 1) / SUITS) / self.cards

  @property
  def state_bits(self) -> float:
    return self.cards * math.log2(SUITS)

  def example(self, key: jax.Array) -> Batch:
    n = self.cards
    suits = self.dealt(field(key, 0), SUITS)
    watch = jnp.arange(n) < n - 1
    play = jnp.zeros(n - 1, jnp.int32)
    inputs = jnp.concatenate([SUITS * watch + suits, play])
    targets = jnp.concatenate([jnp.full(n - 1, IGNORE, jnp.int32), suits[::-1]])
    age = jnp.maximum(2 * (jnp.arange(2 * n - 1) - n + 1), 0)
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(2 * n - 1), {"age": age})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    last = jnp.argmax(inputs < SUITS)
    t = jnp.arange(inputs.size)
    play = (t >= last) & (t < length)
    return jnp.where(play, inputs[jnp.maximum(2 * last - t, 0)] % SUITS, IGNORE)

  def hidden(self, inputs: jax.Array) -> jax.Array:
    return inputs - inputs % SUITS


@dataclasses.dataclass(frozen=True)
class CountRecall(Game):
  """How many cards of the asked kind were shown; see the module. An input is kinds value + query;
  both decks are shuffled apart. Meta: `count [T]` that is due.

  Attributes:
    of: "colours", "suits" or "ranks".
  """

  decks: int = 1
  of: str = "colours"
  iid: bool = False
  number = 21

  def __post_init__(self):
    checks.positive(decks=self.decks)
    checks.one_of("of", self.of, tuple(KINDS))

  @property
  def kinds(self) -> int:
    """Kinds of cards that are told apart."""
    return KINDS[self.of]

  @property
  def inputs_size(self) -> int:
    return self.kinds**2

  @property
  def outputs_size(self) -> int:
    return (self.cards if self.iid else self.cards // self.kinds) + 1

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return max(self.inputs_size, self.outputs_size)

  @property
  def floor(self) -> float:
    """Of who knows the step alone, and says the likeliest count."""
    n, of, steps = self.cards, self.cards // self.kinds, self.cards - 1
    most = 0.0
    for shown in range(1, steps + 1):
      if self.iid:
        each = [math.comb(shown, j) * (self.kinds - 1) ** (shown - j) for j in range(shown + 1)]
      else:
        each = [math.comb(of, j) * math.comb(n - of, shown - j) for j in range(shown + 1)]
      most += max(each) / sum(each)
    return most / steps

  @property
  def state_bits(self) -> float:
    return self.kinds * math.log2(self.cards / self.kinds)

  def example(self, key: jax.Array) -> Batch:
    values, queries = (self.dealt(field(key, i), self.kinds)[:-1] for i in (0, 1))
    so_far = jnp.cumsum(values[:, None] == jnp.arange(self.kinds)[None], axis=0)
    targets = jnp.take_along_axis(so_far, queries[:, None], axis=1)[:, 0].astype(jnp.int32)
    inputs = self.kinds * values + queries
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(inputs.size), {"count": targets})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    values, queries, t = inputs // self.kinds, inputs % self.kinds, jnp.arange(inputs.size)
    shown = (values[None] == queries[:, None]) & (t[None] <= t[:, None]) & (t[None] < length)
    return jnp.sum(shown, axis=1, dtype=jnp.int32)

  def hidden(self, inputs: jax.Array) -> jax.Array:
    return inputs % self.kinds
