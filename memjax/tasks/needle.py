"""Needles in a haystack: what was the value of this key? (Passkey: Mohtashami and Jaggi 2023, arXiv
2305.16300; the needle grid of G. Kamradt; "RULER", Hsieh et al. 2024, arXiv 2404.06654.)

A needle is `MARK k v1 .. vm`; `needles` of them stand anywhere in a background, and at the end
`queries` of their keys are asked: `ASK k v1 .. v(m-1)`, where v1 is due at k and so on. One needle
in the background "repeat" is the passkey task; "needles" makes the background of other needles.

Ids: 0 padding, 1 MARK, 2 ASK, then the keys, the values and the text.
Difference: ids, not words; the rank of a needle is drawn anew for each example.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field

MARK, ASK, FIRST = 1, 2, 3
BACKGROUNDS = ("repeat", "text", "needles")
SENTENCE = 25  # ids of text that "repeat" repeats


@dataclasses.dataclass(frozen=True)
class Needle(Task):
  """See the module.

  Attributes:
    length: tokens, questions included.   needles: how many.   queries: of them are asked.
    digits: m ids of a value.   depth: percent of the background before a single needle; None: any.
    background: "repeat", "text" (even draws of text ids), or "needles".
    keys: ids of keys.   values: ids of digits.   vocab: of all; text has the rest.

  Meta: `depth [T]`, percent of the background before the asked needle; `digit [T]`.

  Raises:
    ValueError: the needles and questions do not fit, or there are too few ids.
  """

  length: int = 512
  needles: int = 1
  queries: int = 1
  digits: int = 1
  depth: int | None = None
  background: str = "repeat"
  keys: int = 512
  values: int = 1024
  vocab: int = 4096
  number = 5

  def __post_init__(self):
    checks.positive(length=self.length, needles=self.needles, queries=self.queries)
    checks.positive(digits=self.digits, keys=self.keys, values=self.values)
    checks.one_of("background", self.background, BACKGROUNDS)
    if self.queries > self.needles:
      raise ValueError(f"queries={self.queries} must not exceed needles={self.needles}")
    least = (self.needles + self.queries) * self.size
    if self.length < least:
      raise ValueError(f"length={self.length} must be at least {least} for the needles and queries")
    if self.sentences > self.keys:
      raise ValueError(f"keys={self.keys} must be at least the {self.sentences} sentences with one")
    if self.vocab < FIRST + self.keys + self.values + 1:
      raise ValueError(f"vocab={self.vocab} must exceed {FIRST} + keys + values")
    if self.depth is not None and (self.needles > 1 or not 0 <= self.depth <= 100):
      raise ValueError(f"depth={self.depth} must lie in 0..100, and is for needles=1")

  @property
  def size(self) -> int:
    """Tokens of a needle; a question has one less."""
    return 2 + self.digits

  @property
  def told(self) -> int:
    """Tokens before the questions."""
    return self.length - self.queries * (self.size - 1)

  @property
  def sentences(self) -> int:
    """Needles, those of the background included."""
    return self.told // self.size if self.background == "needles" else self.needles

  @property
  def chance(self) -> float:
    return 1 / self.values

  @property
  def floor(self) -> float:
    return max(self.chance, 1 / self.sentences if self.sentences > 1 else 0.0)

  @property
  def state_bits(self) -> float:
    value = self.digits * math.log2(self.values)
    return self.sentences * (math.log2(self.keys) + value)

  def example(self, key: jax.Array) -> Batch:
    n, size, told = self.sentences, self.size, self.told
    keys = FIRST + draw.distinct(field(key, 0), self.keys, n)
    values = jax.random.randint(field(key, 1), (n, self.digits), 0, self.values)
    values = FIRST + self.keys + values.astype(jnp.int32)
    marks = jnp.full((n, 1), MARK, jnp.int32)
    sentences = jnp.concatenate([marks, keys[:, None], values], axis=1)

    free = told - n * size
    spots = self._spots(field(key, 2), free)
    places = spots + size * jnp.arange(n)
    haystack = self._text(field(key, 3))
    at = places[:, None] + jnp.arange(size)[None]
    haystack = haystack.at[at].set(sentences)

    asked = draw.distinct(field(key, 4), n, self.queries)
    asks = jnp.full((self.queries, 1), ASK, jnp.int32)
    parts = [asks, keys[asked][:, None], values[asked][:, :-1]]
    questions = jnp.concatenate(parts, axis=1)
    inputs = jnp.concatenate([haystack, questions.reshape(-1)])
    nothing = jnp.full((self.queries, 1), IGNORE, jnp.int32)
    due = jnp.concatenate([nothing, values[asked]], axis=1).reshape(-1)
    targets = jnp.concatenate([jnp.full(told, IGNORE, jnp.int32), due])
    depth = jnp.round(100 * places[asked] / max(1, told - size)).astype(jnp.int32)
    meta = {
      "depth": self._beside(jnp.repeat(depth, size - 1)),
      "digit": self._beside(jnp.tile(jnp.arange(-1, self.digits), self.queries)),
    }
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), meta)

  def _beside(self, values: jax.Array) -> jax.Array:
    """Values of the questions' places, 0 before them."""
    return jnp.concatenate([jnp.zeros(self.told, jnp.int32), values.astype(jnp.int32)])

  def _spots(self, key: jax.Array, free: int) -> jax.Array:
    """Tokens of the background before each needle, in order."""
    if self.depth is not None:
      return jnp.asarray([round(free * self.depth / 100)], jnp.int32)
    drawn = jax.random.randint(key, (self.sentences,), 0, free + 1)
    return jnp.sort(drawn).astype(jnp.int32)

  def _text(self, key: jax.Array) -> jax.Array:
    """The background `[told]` before needles are laid over it."""
    first = FIRST + self.keys + self.values
    if self.background == "repeat":
      begin = jax.random.randint(key, (), 0, SENTENCE)
      at = (begin + jnp.arange(self.told)) % SENTENCE
      return (first + at % (self.vocab - first)).astype(jnp.int32)
    return jax.random.randint(key, (self.told,), first, self.vocab).astype(jnp.int32)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    digits, at = self.digits, jnp.arange(self.length)
    before = jnp.roll(inputs, 1).at[0].set(0)
    told = before == MARK  # a key that was told stands here
    values = jnp.stack([jnp.roll(inputs, -1 - d) for d in range(digits)], axis=1)
    table = jnp.full((self.keys, digits), IGNORE, jnp.int32)
    slot = jnp.where(told, inputs - FIRST, self.keys)
    table = table.at[slot].set(values, mode="drop")
    since = at - jax.lax.cummax(jnp.where(inputs == ASK, at, -1))  # 1 at the key
    asking = (jnp.cumsum(inputs == ASK) > 0) & (since >= 1) & (since <= digits)
    key = inputs[jnp.maximum(at - since + 1, 0)] - FIRST
    answer = table[jnp.clip(key, 0, self.keys - 1), jnp.clip(since - 1, 0, digits - 1)]
    return jnp.where(asking, answer, IGNORE)
