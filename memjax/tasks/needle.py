"""Needles in a haystack: what was the value of this key? (Passkey: Mohtashami and Jaggi 2023, arXiv
2305.16300; the needle grid of G. Kamradt; "RULER", Hsieh et al. 2024, arXiv 2404.06654.)

A needle is `MARK k v1 .. vm`; `needles` of them stand anywhere in a background, and at the end
`queries` of their keys are asked: `ASK k v1 .. v(m-1)`, where v1 is due at k and so on. One needle
in the background "repeat" is the passkey task; "needles" makes the background of other needles. If
keys are told several `times`, with a value each time, all values of the asked one are due in order.

RULER's families: single, one needle; multikey, needles=4, or background="needles"; multivalue,
times=4; multiquery, needles=queries=4. Variables and words are in `variables` and `words`.

Ids: 0 padding, 1 MARK, 2 ASK, then the keys, the values and the text.
Differences: ids, not words; the rank of a needle is drawn anew for each example (the authors' order
is the same in all); several values are asked for in their order, not in any.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stretches import Stretches, integers, lay, tail
from memjax.tasks.task import IGNORE, Batch, field

MARK, ASK, FIRST = 1, 2, 3
BACKGROUNDS = ("repeat", "text", "needles")
SENTENCE = 25  # ids of text that "repeat" repeats
DEPTHS = tuple(range(0, 101, 5))


@dataclasses.dataclass(frozen=True)
class Needle(Stretches):
  """See the module.

  Attributes:
    length: tokens, questions included.   needles: how many.   queries: of them are asked.
    times: a key is told.   digits: m ids of a value.
    depth: percent of the background before a single needle; None: any.
    background: "repeat", "text" (even draws of text ids), or "needles".
    keys: ids of keys.   values: ids of digits.   vocab: of all; text has the rest.

  Meta: `depth [T]`, percent of the background before the asked needle, the first of its key;
  `digit [T]` of all that are due at a question.

  Any stretch is made by itself (`chunk`); needles are drawn whole for it, so that with
  background="needles" it takes memory for all of them.

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
  times: int = 1
  number = 5

  def __post_init__(self):
    checks.positive(length=self.length, needles=self.needles, queries=self.queries)
    checks.positive(digits=self.digits, keys=self.keys, values=self.values, times=self.times)
    checks.one_of("background", self.background, BACKGROUNDS)
    if self.queries > self.needles:
      raise ValueError(f"queries={self.queries} must not exceed needles={self.needles}")
    if self.times > 1 and self.background == "needles":
      raise ValueError(f"times={self.times} is for background='repeat' or 'text'")
    least = self.needles * self.times * self.size + self.queries * self.asking
    if self.length < least:
      raise ValueError(f"length={self.length} must be at least {least} for the needles and queries")
    if self.sentences // self.times > self.keys:
      raise ValueError(f"keys={self.keys} must be at least the {self.sentences} sentences with one")
    if self.vocab < FIRST + self.keys + self.values + 1:
      raise ValueError(f"vocab={self.vocab} must exceed {FIRST} + keys + values")
    if self.depth is not None and (self.sentences > 1 or not 0 <= self.depth <= 100):
      raise ValueError(f"depth={self.depth} must lie in 0..100, and is for needles=1")

  @property
  def size(self) -> int:
    """Tokens of a needle."""
    return 2 + self.digits

  @property
  def asking(self) -> int:
    """Tokens of a question with its answer but the last."""
    return 1 + self.times * self.digits

  @property
  def told(self) -> int:
    """Tokens before the questions."""
    return self.length - self.queries * self.asking

  @property
  def sentences(self) -> int:
    """Needles, those of the background and further ones of a key included."""
    if self.background == "needles":
      return self.told // self.size
    return self.needles * self.times

  @property
  def chance(self) -> float:
    return 1 / self.values

  @property
  def floor(self) -> float:
    """Of who says a value that was told and was not said yet."""
    left = range(self.sentences, self.sentences - self.times, -1)
    known = sum(1 / n for n in left) / self.times if self.sentences > 1 else 0.0
    return max(self.chance, known)

  @property
  def state_bits(self) -> float:
    value = self.digits * math.log2(self.values)
    return self.sentences * (math.log2(self.keys) / self.times + value)

  def stretch(
    self,
    key: jax.Array,
    start: jax.Array | int,
    size: int,
    depth: jax.Array | int | None = None,
  ) -> Batch:
    """As of any task with stretches; a single needle may be put at a `depth` that is data."""
    depth = self.depth if depth is None else depth
    n, told = self.sentences, self.told
    kinds = n // self.times
    keys = FIRST + draw.distinct(field(key, 0), self.keys, kinds)
    values = jax.random.randint(field(key, 1), (n, self.digits), 0, self.values)
    values = FIRST + self.keys + values.astype(jnp.int32)
    owner = jnp.arange(n)
    if self.times > 1:
      owner = draw.distinct(field(key, 5), n, n) // self.times
    marks = jnp.full((n, 1), MARK, jnp.int32)
    sentences = jnp.concatenate([marks, keys[owner][:, None], values], axis=1)
    places = self._spots(field(key, 2), depth) + self.size * jnp.arange(n)
    haystack = lay(self._text(field(key, 3), start, size), start, places, sentences)

    asked = draw.distinct(field(key, 4), kinds, self.queries)
    own = jnp.argsort(owner, stable=True).reshape(kinds, self.times)[asked]  # sentences
    due = values[own].reshape(self.queries, -1)
    nothing = jnp.full((self.queries, 1), IGNORE, jnp.int32)
    questions = jnp.concatenate([nothing + ASK - IGNORE, keys[asked][:, None], due[:, :-1]], axis=1)
    if depth is None:
      depth = jnp.round(100 * places[own[:, 0]] / max(1, told - self.size))
    depths = jnp.broadcast_to(jnp.asarray(depth, jnp.int32), (self.queries,))
    digit = jnp.tile(jnp.arange(-1, self.asking - 1), self.queries)

    def beside(values, other):
      return tail(values.reshape(-1), start, size, told, other)

    targets = beside(jnp.concatenate([nothing, due], axis=1), IGNORE)
    before = start + jnp.arange(size) < told
    inputs = jnp.where(before, haystack, beside(questions, 0))
    meta = {"depth": beside(jnp.repeat(depths, self.asking), 0), "digit": beside(digit, 0)}
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), meta)

  def grid(self, seed: int, split: int, trials: int, depths: tuple[int, ...] = DEPTHS) -> Batch:
    """A row of the grid: for each of `depths`, in percent, `trials` examples with a single needle
    there, one after another. `acc_by(predicted, batch, "depth")` tells the cells.

    Raises:
      ValueError: there is more than one needle.
    """
    if self.sentences > 1:
      raise ValueError(f"a grid is for needles=1, not {self.sentences} of them")
    stream = self.stream(seed, split)
    at = jnp.repeat(jnp.asarray(depths), trials)
    place = lambda i, d: self.stretch(jax.random.fold_in(stream, i), 0, self.length, d)  # noqa: E731
    return jax.vmap(place)(jnp.arange(at.size), at)

  def _spots(self, key: jax.Array, depth: jax.Array | int | None) -> jax.Array:
    """Tokens of the background before each needle, in order."""
    free = self.told - self.sentences * self.size
    if depth is not None:
      return jnp.round(free * jnp.asarray(depth, jnp.float32) / 100).astype(jnp.int32)[None]
    drawn = jax.random.randint(key, (self.sentences,), 0, free + 1)
    return jnp.sort(drawn).astype(jnp.int32)

  def _text(self, key: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    """A stretch of the background before needles are laid over it, `[size]`."""
    first = FIRST + self.keys + self.values
    if self.background == "repeat":
      begin = jax.random.randint(key, (), 0, SENTENCE)
      at = (begin + start + jnp.arange(size)) % SENTENCE
      return (first + at % (self.vocab - first)).astype(jnp.int32)
    return integers(key, start, size, first, self.vocab)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    digits, due, at = self.digits, self.asking - 1, jnp.arange(self.length)
    before = jnp.roll(inputs, 1).at[0].set(0)
    slot = jnp.where(before == MARK, inputs - FIRST, self.keys)  # of a key that is told here
    values = jnp.stack([jnp.roll(inputs, -1 - d) for d in range(digits)], axis=1)
    turn = jnp.zeros_like(at) if self.times == 1 else _turn(slot)
    table = jnp.full((self.keys, self.times, digits), IGNORE, jnp.int32)
    table = table.at[slot, turn].set(values, mode="drop").reshape(self.keys, -1)
    since = at - jax.lax.cummax(jnp.where(inputs == ASK, at, -1))  # 1 at the key
    asking = (jnp.cumsum(inputs == ASK) > 0) & (since >= 1) & (since <= due)
    key = inputs[jnp.maximum(at - since + 1, 0)] - FIRST
    answer = table[jnp.clip(key, 0, self.keys - 1), jnp.clip(since - 1, 0, due - 1)]
    return jnp.where(asking, answer, IGNORE)


def _turn(kinds: jax.Array) -> jax.Array:
  """How many equal ones stand before each, `[T]`."""
  order = jnp.argsort(kinds, stable=True)
  ranked = kinds[order]
  number = jnp.arange(kinds.size) - jnp.searchsorted(ranked, ranked, side="left")
  return jnp.zeros_like(number).at[order].set(number)
