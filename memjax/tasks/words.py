"""Words by how often they occur ("RULER", Hsieh et al. 2024, arXiv 2404.06654).

Common words: some words stand in a list many times, others a few times, all in random order; at the
end the common ones are asked for, and are due in the order of their first appearance. Frequent
words: the word of rank k stands in proportion to k^-alpha; that of rank 1 is noise and always the
same id, and the words of the ranks after it are due, the most frequent first.

    w3 w1 w1 w7 w3 w1 ..  ASK w3
                          w3  w1   due

Ids: 0 padding, 1 ASK, 2 noise, then the words.
Differences: ids, not spelt words; answers are due in an order, not in any; words are drawn and
shuffled anew for each example (the authors' shuffles are the same in all).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field

ASK, NOISE, FIRST = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class CommonWords(Task):
  """See the module.

  Attributes:
    common: words that are due.   often: times each of them stands in the list.
    others: other words.   seldom: times each of them stands there.
    words: ids of words.

  The paper: 10 common ones, 30 times and 3 times; 6 and 1 below 4096 tokens.
  Meta: `rank [T]` of the word that is due.

  Raises:
    ValueError: too few ids, or the common words are not commoner.
  """

  common: int = 10
  often: int = 30
  others: int = 200
  seldom: int = 3
  words: int = 4093
  number = 16

  def __post_init__(self):
    checks.positive(common=self.common, often=self.often, others=self.others, seldom=self.seldom)
    if self.often <= self.seldom:
      raise ValueError(f"often={self.often} must exceed seldom={self.seldom}")
    if self.words < self.common + self.others:
      raise ValueError(f"words={self.words} must be at least common + others")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return FIRST + self.words

  @property
  def told(self) -> int:
    """Tokens before the question."""
    return self.common * self.often + self.others * self.seldom

  @property
  def length(self) -> int:
    """Tokens of an example."""
    return self.told + self.common

  @property
  def chance(self) -> float:
    return 1 / self.words

  @property
  def floor(self) -> float:
    """Of who names the word that was new next after the one named last, however often it stood: the
    share on 2000 lists of its own."""
    return _share_of_next(self.common, self.often, self.others, self.seldom)

  @property
  def state_bits(self) -> float:
    """Of the answer alone; to find it takes more."""
    return sum(math.log2(self.words - i) for i in range(self.common))

  def example(self, key: jax.Array) -> Batch:
    ids = FIRST + draw.distinct(field(key, 0), self.words, self.common + self.others)
    counts = [self.often] * self.common + [self.seldom] * self.others
    which = np.repeat(np.arange(ids.size), counts)
    listed = ids[which][draw.distinct(field(key, 1), self.told, self.told)]
    first = jnp.argmax(listed[None] == ids[: self.common, None], axis=1)
    return _asked(listed, ids[: self.common][jnp.argsort(first)])

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    at = jnp.arange(self.length)
    listed = jnp.where(at < length - self.common, inputs, self.vocab)
    count = jnp.zeros(self.vocab, jnp.int32).at[listed].add(1, mode="drop")
    new = jnp.full(self.vocab, self.length).at[listed].min(at, mode="drop")
    due = jnp.argsort(jnp.where(count == self.often, new, self.length))[: self.common]
    since = at - self.told
    return jnp.where(since >= 0, due[jnp.maximum(since, 0)], IGNORE).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class FrequentWords(Task):
  """See the module.

  Attributes:
    listed: words of the list, about: the word of rank k stands there `listed k^-alpha / zeta`
      times, rounded down.
    due: so many ranks after the first.   alpha: above 1.   words: ids of words.

  Meta: `rank [T]` of the word that is due, 0 for the most frequent.

  Raises:
    ValueError: the words that are due are not told apart by their counts, or too few ids.
  """

  listed: int = 1000
  due: int = 3
  alpha: float = 2.0
  words: int = 4093
  number = 17

  def __post_init__(self):
    checks.positive(listed=self.listed, due=self.due, words=self.words)
    if not self.alpha > 1:
      raise ValueError(f"alpha={self.alpha} must exceed 1")
    asked = (*self.counts, 0)[1 : self.due + 2]
    if len(asked) <= self.due or len(set(asked)) < len(asked):
      raise ValueError(f"listed={self.listed} gives the words that are due the counts {asked}")
    if self.words < len(self.counts) - 1:
      raise ValueError(f"words={self.words} must be at least {len(self.counts) - 1}")

  @functools.cached_property
  def counts(self) -> tuple[int, ...]:
    """How often each rank stands in the list, noise first; those that do not are left out."""
    ranks = np.arange(1, int(self.listed ** (1 / self.alpha)) + 2, dtype=np.float64)
    found = (self.listed * ranks**-self.alpha / _zeta(self.alpha)).astype(int)
    return tuple(int(n) for n in found if n)

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return FIRST + self.words

  @property
  def told(self) -> int:
    """Tokens before the question."""
    return sum(self.counts)

  @property
  def length(self) -> int:
    """Tokens of an example."""
    return self.told + self.due

  @property
  def chance(self) -> float:
    return 1 / self.words

  @property
  def floor(self) -> float:
    """Of who names a word of the list, drawn from those that are not noise or named already."""
    return sum(n / sum(self.counts[i + 1 :]) for i, n in self._asked) / self.due

  @property
  def _asked(self):
    return list(enumerate(self.counts[1 : self.due + 1]))

  @property
  def state_bits(self) -> float:
    """Of the answer alone; to find it takes more."""
    return sum(math.log2(self.words - i) for i in range(self.due))

  def example(self, key: jax.Array) -> Batch:
    ids = FIRST + draw.distinct(field(key, 0), self.words, len(self.counts) - 1)
    ids = jnp.concatenate([jnp.full(1, NOISE, jnp.int32), ids])
    which = np.repeat(np.arange(ids.size), self.counts)
    listed = ids[which][draw.distinct(field(key, 1), self.told, self.told)]
    return _asked(listed, ids[1 : self.due + 1])

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    at = jnp.arange(self.length)
    listed = jnp.where((at < length - self.due) & (inputs != NOISE), inputs, self.vocab)
    count = jnp.zeros(self.vocab, jnp.int32).at[listed].add(1, mode="drop")
    due = jax.lax.top_k(count, self.due)[1]
    since = at - self.told
    return jnp.where(since >= 0, due[jnp.maximum(since, 0)], IGNORE).astype(jnp.int32)


def _asked(listed: jax.Array, due: jax.Array) -> Batch:
  """The list, and the question with all of `due [n]` but the last."""
  told, n = listed.size, due.size
  inputs = jnp.concatenate([listed, jnp.full(1, ASK, jnp.int32), due[:-1]])
  targets = jnp.concatenate([jnp.full(told, IGNORE, jnp.int32), due])
  rank = jnp.maximum(jnp.arange(told + n) - told, 0)
  return Batch(inputs, targets, targets != IGNORE, jnp.int32(told + n), {"rank": rank})


def _zeta(alpha: float, terms: int = 1000) -> float:
  """The sum of k^-alpha over all k from 1; the tail by an integral, to about 1e-7."""
  head = sum(k**-alpha for k in range(1, terms))
  return head + terms ** (1 - alpha) / (alpha - 1) + terms**-alpha / 2


@functools.cache
def _share_of_next(common: int, often: int, others: int, seldom: int) -> float:
  """Of common words, in order of their first appearance, those that the word before them in the
  order of all words' first appearance is common too, or that are the very first."""
  draw = np.random.default_rng(0)
  words = np.repeat(np.arange(common + others), [often] * common + [seldom] * others)
  right = 0
  for _ in range(2000):
    seen, new = np.unique(draw.permutation(words), return_index=True)
    is_common = seen[np.argsort(new)] < common
    right += is_common[0] + np.sum(is_common[1:] & is_common[:-1])
  return float(right / 2000 / common)
