"""Learning to execute, as in "Relational recurrent neural networks" (Santoro et al. 2018, arXiv
1806.01822), after Zaremba and Sutskever (arXiv 1410.4615): what does a small program make?

    (x=34for[7]x+=52)-99~~~        due at the ~: 2 9 9

Every number has `length` digits; each of `nest` levels is an operation, whose first operand is the
level before it in brackets: a+b, a-b, a*b, aifb<celsed (or >), x=afor[k]x+=b with k in 1..9, drawn
evenly from the group's. The answer is the value modulo 10^(length + 1), so that negative ones wrap.
Groups "copy", "reverse" and "double" have one number, which is due again, backwards, or twice.
Digits of the answer are due at the `~` behind the program, one after another; these tell nothing of
it, not even how long it is (the authors' decoder has inputs of zeros).

Ids: 0 padding, then the characters of `CHARACTERS`.
Differences: characters only, not the authors' other form, with words and whole numbers as tokens;
the answer follows in the same sequence; `mixed` draws each example's length and nest up to the
given ones, which is what the authors' combined curriculum does at its present level.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import program_parser
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field

CHARACTERS = "0123456789+-*()<>=[]xiforels~"
ZERO, DUE = 1, len(CHARACTERS)
# Each operation as its characters: A the level before or a number, N a number, K the digit.
TEMPLATES = {
  "+": "A+N", "-": "A-N", "*": "A*N", "<": "AifN<NelseN", ">": "AifN>NelseN",
  "for": "x=Afor[K]x+=N",
}  # fmt: skip
GROUPS = {
  "addition": ("+",),
  "algebra": ("+", "-", "*"),
  "control": ("if", "for"),
  "algebra_control": ("+", "-", "if"),
  "all": ("+", "-", "*", "if", "for"),
}
MEMORY = ("copy", "reverse", "double")
NUMBERS = 3  # beside the first operand


@dataclasses.dataclass(frozen=True)
class ProgramEvaluation(Task):
  """See the module.

  Attributes:
    length: digits of a number, 1..7.   nest: levels; 1 where numbers are only repeated.
    group: "addition", "algebra", "control", "algebra_control", "all", "copy", "reverse", "double".
    mixed: each example draws its length and nest, up to these.

  Meta: `digit [T]`, which of the answer is due, from 0 for the first; `nest [B]`; `digits [B]`, of
  each number.

  Raises:
    ValueError: too long, or nested where numbers are only repeated.
  """

  length: int = 5
  nest: int = 2
  group: str = "all"
  mixed: bool = False
  vocab: int = 1 + len(CHARACTERS)
  number = 55

  def __post_init__(self):
    checks.positive(length=self.length, nest=self.nest)
    checks.one_of("group", self.group, (*GROUPS, *MEMORY))
    if self.length > 7:
      raise ValueError(f"length={self.length} must be at most 7: answers are int32")
    if self.group in MEMORY and self.nest > 1:
      raise ValueError(f"nest={self.nest} must be 1 with group={self.group!r}: nothing is nested")

  @property
  def operations(self) -> tuple[tuple[str, ...], ...]:
    """Those of the group, each with its variants."""
    return tuple(("<", ">") if one == "if" else (one,) for one in GROUPS[self.group])

  @property
  def answer(self) -> int:
    """Most digits of an answer."""
    if self.group in MEMORY:
      return self.length * (1 + (self.group == "double"))
    return self.length + 1

  @property
  def chance(self) -> float:
    return 0.1

  @property
  def floor(self) -> float:
    """Of the commonest digit at each place of the answer; measured on numbers drawn anew."""
    rng = np.random.default_rng(0)
    counts = np.zeros((self.answer, 10))
    for digits in range(1, self.length + 1) if self.mixed else (self.length,):
      for levels in range(1, self.nest + 1) if self.mixed else (self.nest,):
        for value in self._values(rng, digits, levels, 2000):
          text = str(value) * (1 + (self.group == "double"))
          for place, digit in enumerate(text):
            counts[place, int(digit)] += 1
    return float(counts.max(axis=1).sum() / counts.sum())

  def _values(self, rng, digits: int, levels: int, count: int) -> np.ndarray:
    """Answers to as many programs, without the programs."""
    draw = lambda: rng.integers(10 ** (digits - 1), 10**digits, count)  # noqa: E731
    value, modulus = draw(), 10 ** (digits + 1)
    for _ in range(levels) if self.group not in MEMORY else ():
      b, c, d = draw(), draw(), draw()
      made = {
        "+": value + b, "-": value - b, "*": value * b, "if": np.where(b < c, value, d),
        "for": value + rng.integers(1, 10, count) * b,
      }  # fmt: skip
      of_group = np.stack([made[name] for name in GROUPS[self.group]])
      value = of_group[rng.integers(0, len(of_group), count), np.arange(count)] % modulus
    return value

  @property
  def state_bits(self) -> float:
    return self.nest * self.length * math.log2(10)

  def example(self, key: jax.Array) -> Batch:
    n = self.nest
    digits, levels = jnp.int32(self.length), jnp.int32(n)
    if self.mixed:
      digits = jax.random.randint(field(key, 0), (), 1, self.length + 1)
      levels = jax.random.randint(field(key, 1), (), 1, n + 1)
    tens = jnp.asarray(10 ** np.arange(self.length + 2), jnp.int32)
    low, high = tens[digits - 1], tens[digits]
    numbers = jax.random.randint(field(key, 2), (n, 1 + NUMBERS), low, high)
    if self.group in MEMORY:
      written = _digits(numbers[0, 0], self.length)
      program, due = written, written
      if self.group != "copy":
        due = due[::-1] if self.group == "reverse" else jnp.concatenate([due, due])
    else:
      program, value = self._program(key, numbers, levels, high * 10)
      due = _digits(value, self.answer)
    program, due = _closed(program), _closed(due)
    size = jnp.sum(program != PAD)
    inputs = jnp.concatenate([program, jnp.zeros(self.answer, jnp.int32)])
    at = jnp.arange(len(inputs))
    digit = jnp.clip(at - size, 0, self.answer - 1)
    asking = (at >= size) & (at < size + self.answer)
    inputs = jnp.where(asking, DUE, inputs)
    targets = jnp.where(asking & (due[digit] != PAD), due[digit], IGNORE)
    meta = {"digit": jnp.where(asking, digit, 0), "nest": levels, "digits": digits}
    return Batch(inputs, targets, targets != IGNORE, size + self.answer, meta)

  def _program(self, key: jax.Array, numbers: jax.Array, levels: jax.Array, modulus: jax.Array):
    """Characters of a program, with gaps, and its value; `numbers [nest, 4]`: of the first row all,
    of the others all but the first."""
    kinds = jnp.asarray([len(o) for o in self.operations])
    flat = [variant for one in self.operations for variant in one]
    start = jnp.cumsum(kinds) - kinds
    which = jax.random.randint(field(key, 3), (self.nest,), 0, len(kinds))
    variant = jax.random.bits(field(key, 4), (self.nest,)) % kinds[which].astype(jnp.uint32)
    which = start[which] + variant.astype(jnp.int32)
    times = jax.random.randint(field(key, 5), (self.nest,), 1, 10)

    before, after = self._around(flat)
    signs = jnp.broadcast_to(jnp.arange(1, self.vocab), (self.nest, self.vocab - 1))
    said = _digits(numbers[:, 1:], self.length).reshape(self.nest, -1)
    pool = jnp.concatenate(
      [said, ZERO + times[:, None], signs, jnp.zeros_like(said[:, :1])], axis=1
    )
    take = lambda table: jnp.take_along_axis(pool, jnp.asarray(table)[which], axis=1)  # noqa: E731
    before, after = take(before), take(after)

    text, value = _digits(numbers[0, 0], self.length), numbers[0, 0]
    open_, close = (1 + CHARACTERS.index(c) for c in "()")
    for level in range(self.nest):
      there = level < levels
      inner = [jnp.where(there, open_, PAD)[None], text, jnp.where(there, close, PAD)[None]]
      sides = [jnp.where(there, side[level], PAD) for side in (before, after)]
      text = jnp.concatenate([sides[0], *(inner if level else [text]), sides[1]])
      made = self._apply(value, numbers[level], times[level], modulus)
      new = jnp.stack([made[name] for name in flat])[which[level]] % modulus
      value = jnp.where(there, new, value)
    return text, value % modulus

  def _around(self, names: list[str]) -> list[np.ndarray]:
    """Where the characters of each operation before, and after, its first operand stand in a pool:
    the digits of its other numbers, k, all characters, and a blank; `[names, most]` each."""
    signs = NUMBERS * self.length + 1
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for name in names:
      number = 0
      for side, text in zip(sides, TEMPLATES[name].split("A"), strict=True):
        row: list[int] = []
        for character in text:
          if character == "N":
            row += range(number * self.length, (number + 1) * self.length)
            number += 1
          else:
            row.append(signs - 1 if character == "K" else signs + CHARACTERS.index(character))
        side.append(row)
    blank, most = signs + len(CHARACTERS), [max(map(len, rows)) for rows in sides]
    return [
      np.asarray([row + [blank] * (n - len(row)) for row in rows])
      for rows, n in zip(sides, most, strict=True)
    ]

  def _apply(self, a: jax.Array, numbers: jax.Array, times: jax.Array, modulus: jax.Array):
    """What each operation makes of a, the value before, modulo `modulus`, and of the other numbers;
    these alone are compared, as they are exact. a * b would not fit: digit by digit."""
    b, c, d = numbers[1], numbers[2], numbers[3]
    product = jnp.int32(0)
    for place in reversed(range(self.length)):
      product = (product * 10 + a * (b // 10**place % 10)) % modulus
    return {
      "+": a + b, "-": a - b, "*": product, "<": jnp.where(b < c, a, d),
      ">": jnp.where(b > c, a, d), "for": a + times * b,
    }  # fmt: skip

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """Reads the characters on the host, in Python."""
    kind = jax.ShapeDtypeStruct(inputs.shape, jnp.int32)
    return jax.pure_callback(self._read, kind, inputs, vmap_method="expand_dims")

  def _read(self, inputs: np.ndarray) -> np.ndarray:
    inputs = np.asarray(inputs)
    found = np.full(inputs.shape, IGNORE, np.int32)
    for place in np.ndindex(inputs.shape[:-1]):
      text = "".join(CHARACTERS[i - 1] for i in inputs[place] if i != PAD)
      program = text.partition("~")[0]
      if not program:
        continue
      at = np.flatnonzero(inputs[place] == DUE)
      due = self._due(program)
      found[place][at[: len(due)]] = [ZERO + int(digit) for digit in due]
    return found

  def _due(self, program: str) -> str:
    """The answer to a program."""
    if self.group in MEMORY:
      return {"copy": program, "reverse": program[::-1], "double": 2 * program}[self.group]
    digits = len(next(filter(None, "".join(c if c.isdigit() else " " for c in program).split())))
    return str(program_parser.value(program) % 10 ** (digits + 1))


def _digits(number: jax.Array, width: int) -> jax.Array:
  """Characters of numbers `[...]`, `[..., width] int32`, with PAD for leading zeros."""
  places = (10 ** np.arange(width - 1, -1, -1)).reshape((1,) * number.ndim + (-1,)).astype(np.int32)
  above = number[..., None] // places
  blank = (above == 0) & (places > 1)
  return jnp.where(blank, PAD, ZERO + above % 10).astype(jnp.int32)


def _closed(tokens: jax.Array) -> jax.Array:
  """The same without PAD between, which goes to the end."""
  there = tokens != PAD
  to = jnp.where(there, jnp.cumsum(there) - 1, len(tokens))
  return jnp.zeros_like(tokens).at[to].set(tokens, mode="drop")
