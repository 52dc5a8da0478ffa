"""Parity with and without steps written down, and access by number or by name ("Your Context Is
Not an Array: Unveiling Random Access Limitations in Transformers", Ebrahimi, Panchal and Memisevic
2024, arXiv 2408.05506).

`Parity`, bits b, parities s of the bits so far, names a; a target is due at each token that stands
before an s, and at the last:

    direct       b1 .. bn >                                    only the last is due
    cumulative   b1 .. bn                                      due at every b (arXiv 2312.04927)
    scratchpad   b1 .. bn > s1 .. s(n-1)
    interleaved  b1 s1 b2 s2 .. bn
    mnemonic     a1 b1 a2 b2 .. an bn > a1 s1 a2 s2 .. an

Step i of a scratchpad needs b_i, by its number; a mnemonic finds it by its name. `Access` asks for
nothing else: `x1 .. xn Q i` with i in decimal digits, or `a1 x1 .. an xn Q a_i`.

n is drawn from 1 to `most`. Differences: names of the answer are given, not asked for; no code of
the authors is known, and their ranges are not claimed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field

BLANK, END = 1, 2  # END is > or Q
BIT, DIGIT = 3, 3
VALUE = DIGIT + 10
FORMATS = ("direct", "scratchpad", "interleaved", "mnemonic", "cumulative")
NAMES = ("fresh", "shared")


def _put(ids: jax.Array, at, values, on) -> jax.Array:
  """`ids [T]` with `values` at the places `at` where `on`."""
  return ids.at[jnp.where(on, at, len(ids))].set(values, mode="drop")


def _names(key: jax.Array, names: str, pool: int, most: int) -> jax.Array:
  return jnp.arange(most) if names == "shared" else draw.distinct(key, pool, most)


def _check(names: str, pool: int, most: int) -> None:
  checks.one_of("names", names, NAMES)
  if pool < most:
    raise ValueError(f"pool={pool} must be at least most={most}: a name each")


@dataclasses.dataclass(frozen=True)
class Parity(Task):
  """See the module.

  Attributes:
    most: bits, at most.   form: one of `FORMATS`.
    names: of "mnemonic": "fresh" in each example, or "shared", the same in the same order always.
    pool: names that there are.   shift: up to so many blanks come first.

  Meta: `step [T]`, bits of the parity that is due; `left [T]`, those that are not in it: 0 is the
  parity of all.
  """

  most: int = 20
  form: str = "direct"
  names: str = "fresh"
  pool: int = 128
  shift: int = 0
  number = 73

  def __post_init__(self):
    checks.positive(most=self.most, pool=self.pool)
    checks.one_of("form", self.form, FORMATS)
    _check(self.names, self.pool, self.most)
    if self.shift < 0:
      raise ValueError(f"shift={self.shift} must be at least 0")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return BIT + 2 + (self.pool if self.form == "mnemonic" else 0)

  @property
  def length(self) -> int:
    """Tokens, at most."""
    n = self.most
    lengths = {"direct": n + 1, "scratchpad": 2 * n, "interleaved": 2 * n - 1, "mnemonic": 4 * n}
    return self.shift + lengths.get(self.form, n)

  @property
  def chance(self) -> float:
    return 0.5

  @property
  def floor(self) -> float:
    return 0.5

  @property
  def state_bits(self) -> float:
    return float(self.most) if self.form in ("scratchpad", "mnemonic") else 1.0

  def example(self, key: jax.Array) -> Batch:
    n = jax.random.randint(field(key, 0), (), 1, self.most + 1)
    first = jax.random.randint(field(key, 1), (), 0, self.shift + 1)
    bits = jax.random.bernoulli(field(key, 2), shape=(self.most,)).astype(jnp.int32)
    parity, i = jnp.cumsum(bits) % 2, jnp.arange(self.most)
    each = 2 if self.form in ("interleaved", "mnemonic") else 1
    named = self.form == "mnemonic"
    bit_at = first + each * i + named
    if self.form == "cumulative":
      due_at, total = first + i, n
    elif self.form == "interleaved":
      due_at, total = first + 2 * i, 2 * n - 1
    elif named:
      due_at, total = first + 2 * n + 1 + 2 * i, 4 * n
    else:
      due_at, total = first + n + i, n + 1 if self.form == "direct" else 2 * n
    on, last = i < n, i == n - 1

    ids = jnp.where(jnp.arange(self.length) < first, BLANK, PAD)
    ids = _put(ids, bit_at, BIT + bits, on)
    if self.form == "direct":
      due_at, on = jnp.full_like(due_at, first + n), last
    elif self.form != "cumulative":
      ids = _put(ids, due_at + 1, BIT + parity, on & ~last)
    if self.form not in ("interleaved", "cumulative"):
      ids = ids.at[first + each * n].set(END)
    if named:
      names = BIT + 2 + _names(field(key, 3), self.names, self.pool, self.most)
      ids = _put(_put(ids, first + 2 * i, names, on), due_at, names, on)
    targets = _put(jnp.full(self.length, IGNORE, jnp.int32), due_at, BIT + parity, on)
    nothing = jnp.zeros(self.length, jnp.int32)
    meta = {"step": _put(nothing, due_at, i + 1, on), "left": _put(nothing, due_at, n - 1 - i, on)}
    return Batch(ids.astype(jnp.int32), targets, targets != IGNORE, first + total, meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    at = jnp.arange(self.length)
    first, end = jnp.sum(inputs == BLANK), jnp.argmax(inputs == END)
    if self.form in ("interleaved", "cumulative"):
      each = 2 if self.form == "interleaved" else 1
      asked = (at >= first) & ((at - first) % each == 0) & (at < length)
      parity = jnp.cumsum(asked & (inputs == BIT + 1)) % 2
      return jnp.where(asked, BIT + parity, IGNORE)
    ones = jnp.cumsum((inputs == BIT + 1) & (at < end)) % 2
    if self.form == "direct":
      return jnp.where(at == end, BIT + ones, IGNORE)
    if self.form == "scratchpad":
      asked, place = (at >= end) & (at < length), first + at - end
    else:
      asked = (at > end) & (inputs >= BIT + 2)
      same = (inputs[:, None] == inputs[None]) & (at < end)[None]
      place = jnp.argmax(same, axis=1) + 1
    found = ones[jnp.clip(place, 0, self.length - 1)]
    return jnp.where(asked, BIT + found, IGNORE)

  def closed_book(self, batch: Batch) -> Batch:
    """Every bit and parity is 0: the form is all that is left."""
    return dataclasses.replace(batch, inputs=jnp.where(batch.inputs == BIT + 1, BIT, batch.inputs))


@dataclasses.dataclass(frozen=True)
class Access(Task):
  """See the module.

  Attributes:
    most: values, at most.   by: "number", counted from 1, or "name".
    digits: of the number, zeros in front.   values: that there are.
    names, pool, shift: as for `Parity`.

  Meta: `place [T]` of the value that is due, from 1.
  """

  most: int = 20
  by: str = "number"
  digits: int = 3
  values: int = 64
  names: str = "fresh"
  pool: int = 128
  shift: int = 0
  number = 74

  def __post_init__(self):
    checks.positive(most=self.most, digits=self.digits, values=self.values, pool=self.pool)
    checks.one_of("by", self.by, ("number", "name"))
    _check(self.names, self.pool, self.most)
    if self.shift < 0 or self.values < 2:
      raise ValueError(f"shift={self.shift} must be at least 0, values={self.values} at least 2")
    if self.most >= 10**self.digits:
      raise ValueError(f"digits={self.digits} must be able to write most={self.most}")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return VALUE + self.values + (self.pool if self.by == "name" else 0)

  @property
  def length(self) -> int:
    """Tokens, at most."""
    asked = self.digits if self.by == "number" else 1
    return self.shift + (1 if self.by == "number" else 2) * self.most + 1 + asked

  @property
  def chance(self) -> float:
    return 1 / self.values

  @property
  def floor(self) -> float:
    """Any of the values told."""
    each = [1 / n + (1 - 1 / n) / self.values for n in range(1, self.most + 1)]
    return sum(each) / self.most

  @property
  def state_bits(self) -> float:
    return self.most * math.log2(self.values)

  def example(self, key: jax.Array) -> Batch:
    n = jax.random.randint(field(key, 0), (), 1, self.most + 1)
    first = jax.random.randint(field(key, 1), (), 0, self.shift + 1)
    values = VALUE + jax.random.randint(field(key, 2), (self.most,), 0, self.values)
    asked = jax.random.randint(field(key, 3), (), 0, n)
    i, each = jnp.arange(self.most), 1 if self.by == "number" else 2
    ids = jnp.where(jnp.arange(self.length) < first, BLANK, PAD)
    ids = _put(ids, first + each * i + each - 1, values, i < n)
    end = first + each * n
    if self.by == "number":
      tens = 10 ** jnp.arange(self.digits - 1, -1, -1)
      question = DIGIT + (1 + asked) // tens % 10
    else:
      names = VALUE + self.values + _names(field(key, 4), self.names, self.pool, self.most)
      ids = _put(ids, first + 2 * i, names, i < n)
      question = names[asked][None]
    ids = ids.at[end].set(END)
    ids = jax.lax.dynamic_update_slice(ids, question.astype(jnp.int32), (end + 1,))
    last = end + len(question)
    targets = jnp.full(self.length, IGNORE, jnp.int32).at[last].set(values[asked])
    place = jnp.zeros(self.length, jnp.int32).at[last].set(1 + asked)
    return Batch(ids, targets, targets != IGNORE, last + 1, {"place": place})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    if self.by == "number":
      written = jax.lax.dynamic_slice(inputs, (length - self.digits,), (self.digits,)) - DIGIT
      number = jnp.sum(written * 10 ** jnp.arange(self.digits - 1, -1, -1))
      place = jnp.sum(inputs == BLANK) + number - 1
    else:
      place = jnp.argmax(inputs == inputs[length - 1]) + 1
    return jnp.where(jnp.arange(self.length) == length - 1, inputs[place], IGNORE)
