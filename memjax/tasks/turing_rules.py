"""The table of a universal Turing machine, asked for by rule; and its tape, asked for by cell (the
machine: `memjax.tasks.turing`; Schuurmans 2023, arXiv 2301.04589).

`Rules`: the 29 rules in random order, then questions, at whose symbol the action is due:

    state symbol action  state symbol action ..  state symbol  state symbol ..

`Tape`: cells with their symbols in random order, then a run of the machine: at each cell that it
visits the symbol there is due, and the next token is what it writes there:

    cell symbol  cell symbol ..  cell written  cell written ..

A cell that was never told is blank. Difference: a tape has `cells` cells, and the run ends where it
leaves them.
"""

import dataclasses
import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw, turing
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field
from memjax.tasks.turing import HALT, HALTED, RULES, STATES, SYMBOLS

STATE, SYMBOL = 1, 1 + STATES  # first ids of `Rules`
ACTION = SYMBOL + SYMBOLS
KEYS = STATES * SYMBOLS
# All pairs of state and symbol; and of those that have a rule, the actions.
PAIRS = np.stack(np.divmod(np.arange(KEYS), SYMBOLS), axis=1)
KNOWN = PAIRS[RULES[PAIRS[:, 0], PAIRS[:, 1], 2] != HALTED]


@dataclasses.dataclass(frozen=True)
class Rules(Task):
  """See the module. The pair without a rule is asked as well: `HALT` is due.

  Attributes:
    permuted: states have other names in each example; False: u1 is always 1.
    steps: ask what a run of so many steps on a random tape asks for; None: all 30 in random order.
    tape: cells that are random at the start of that run; the head begins on one of them.

  Ids: 0 padding, states, c, b, 60 actions, halt. Meta: `step [T]`, number of the question.
  """

  permuted: bool = True
  steps: int | None = None
  tape: int = 8
  vocab: int = ACTION + HALT + 1
  number = 70

  def __post_init__(self):
    checks.positive(tape=self.tape)
    if self.steps is not None:
      checks.positive(steps=self.steps)
    if self.vocab != ACTION + HALT + 1:
      raise ValueError(f"vocab={self.vocab} must be {ACTION + HALT + 1}: it is the machine's")

  @property
  def told(self) -> int:
    """Tokens before the questions."""
    return 3 * len(KNOWN)

  @property
  def asked(self) -> int:
    """Questions, at most."""
    return KEYS if self.steps is None else self.steps

  @property
  def chance(self) -> float:
    return 1 / (HALT + 1)

  @property
  def floor(self) -> float:
    """The most frequent action; of questions of a run: of an even draw of rules."""
    counts = Counter(tuple(RULES[q, s]) for q, s in KNOWN)
    return max(counts.values()) / KEYS

  @property
  def state_bits(self) -> float:
    return len(KNOWN) * math.log2(HALT) + math.log2(KEYS)

  def example(self, key: jax.Array) -> Batch:
    names = jnp.arange(STATES)
    if self.permuted:
      names = draw.distinct(field(key, 0), STATES, STATES)
    known = jnp.asarray(KNOWN)[draw.distinct(field(key, 1), len(KNOWN), len(KNOWN))]
    told = jnp.stack([*self._pair(names, known), self._action(names, known)], axis=1)
    asked, on = self._asked(key)
    due = jnp.where(on, self._action(names, asked), IGNORE)
    questions = jnp.where(on[:, None], jnp.stack(self._pair(names, asked), axis=1), PAD)
    inputs = jnp.concatenate([told.reshape(-1), questions.reshape(-1)]).astype(jnp.int32)
    nothing = jnp.full(self.told, IGNORE, jnp.int32)
    due = jnp.stack([jnp.full_like(due, IGNORE), due], axis=1).reshape(-1)
    targets = jnp.concatenate([nothing, due]).astype(jnp.int32)
    step = jnp.concatenate([jnp.zeros(self.told, jnp.int32), jnp.arange(2 * self.asked) // 2])
    length = self.told + 2 * jnp.sum(on).astype(jnp.int32)
    return Batch(inputs, targets, targets != IGNORE, length, {"step": step})

  def _asked(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pairs of state and symbol `[asked, 2]` and whether there is such a question."""
    if self.steps is None:
      order = draw.distinct(field(key, 2), KEYS, KEYS)
      return jnp.asarray(PAIRS)[order], jnp.ones(KEYS, bool)
    tape = jax.random.bernoulli(field(key, 3), shape=(self.tape,)).astype(jnp.int32)
    head = jax.random.randint(field(key, 4), (), 0, self.tape) + self.steps
    _, trace = turing.run(jnp.pad(tape, self.steps), head, 0, self.steps)
    return jnp.stack([trace.state, trace.symbol], axis=1), trace.on

  def _pair(self, names, pairs):
    return STATE + names[pairs[:, 0]], SYMBOL + pairs[:, 1]

  def _action(self, names, pairs):
    write, move, after = jnp.moveaxis(jnp.asarray(RULES)[pairs[:, 0], pairs[:, 1]], -1, 0)
    named = turing.action(write, move, names[after])
    return ACTION + jnp.where(after == HALTED, HALT, named)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    at = jnp.arange(len(inputs))
    told = inputs[: self.told].reshape(-1, 3)
    pair = jnp.stack([jnp.roll(inputs, 1), inputs], axis=1)
    same = jnp.all(pair[:, None] == told[None, :, :2], axis=-1)
    found = jnp.sum(jnp.where(same, told[None, :, 2], 0), axis=1)
    found = jnp.where(jnp.any(same, axis=1), found, ACTION + HALT)
    due = (at >= self.told) & ((at - self.told) % 2 == 1) & (at < length)
    return jnp.where(due, found, IGNORE).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Tape(Task):
  """See the module.

  Attributes:
    cells: of the tape.   start: of them, in the middle, are told first; the head begins on one.
    steps: of the run.

  Ids: 0 padding, cells, c, b. Meta: `step [T]`; `age [T]`, steps since the cell was written or, if
  it was not, since the start.
  """

  cells: int = 64
  start: int = 8
  steps: int = 100
  number = 71

  def __post_init__(self):
    checks.positive(cells=self.cells, start=self.start, steps=self.steps)
    if self.start > self.cells:
      raise ValueError(f"start={self.start} must not exceed cells={self.cells}")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return 1 + self.cells + SYMBOLS

  @property
  def told(self) -> int:
    """Tokens before the run."""
    return 2 * self.start

  @property
  def chance(self) -> float:
    return 0.5

  @property
  def floor(self) -> float:
    """Telling the symbol from how often it is read, without the cell."""
    return _reads(self.start, min(self.steps, 256))

  @property
  def state_bits(self) -> float:
    return float(min(self.cells, self.start + self.steps))

  def example(self, key: jax.Array) -> Batch:
    low = (self.cells - self.start) // 2
    symbols = jax.random.bernoulli(field(key, 0), shape=(self.start,)).astype(jnp.int32)
    head = low + jax.random.randint(field(key, 1), (), 0, self.start)
    tape = jnp.zeros(self.cells, jnp.int32).at[low : low + self.start].set(symbols)
    _, trace = turing.run(tape, head, 0, self.steps)
    order = draw.distinct(field(key, 2), self.start, self.start)
    told = jnp.stack([1 + low + order, 1 + self.cells + symbols[order]], axis=1)

    write, _, after = jnp.moveaxis(jnp.asarray(RULES)[trace.state, trace.symbol], -1, 0)
    written = jnp.where(trace.on & (after != HALTED), 1 + self.cells + write, PAD)
    visited = jnp.where(trace.on, 1 + trace.head, PAD)
    ran = jnp.stack([visited, written], axis=1)
    due = jnp.where(trace.on, 1 + self.cells + trace.symbol, IGNORE)
    due = jnp.stack([due, jnp.full_like(due, IGNORE)], axis=1).reshape(-1)

    inputs = jnp.concatenate([told.reshape(-1), ran.reshape(-1)]).astype(jnp.int32)
    targets = jnp.concatenate([jnp.full(self.told, IGNORE, jnp.int32), due]).astype(jnp.int32)
    step = jnp.arange(len(inputs)) - self.told
    step, age = jnp.maximum(step, 0) // 2, jnp.zeros_like(inputs)
    age = age.at[self.told :: 2].set(self._age(trace))
    meta = {"step": step.astype(jnp.int32), "age": age}
    return Batch(inputs, targets, targets != IGNORE, jnp.sum(inputs != PAD), meta)

  def _age(self, trace: turing.Trace) -> jax.Array:
    """Steps since the last visit of each step's cell, `[steps]`."""

    def step(last, now):
      number, head = now
      return last.at[head].set(number), number - last[head]

    start = jnp.zeros(self.cells, jnp.int32)
    return jax.lax.scan(step, start, (jnp.arange(self.steps), trace.head))[1]

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    told, blank = self.told // 2, 1 + self.cells
    pairs = inputs.reshape(-1, 2)

    def read(tape, pair):
      cell, symbol = pair
      return tape.at[cell].set(symbol), tape[cell]

    _, found = jax.lax.scan(read, jnp.full(1 + self.cells, blank, jnp.int32), pairs)
    asked = (jnp.arange(len(found)) >= told) & (2 * jnp.arange(len(found)) < length)
    answers = jnp.where(asked, found, IGNORE)
    return jnp.stack([answers, jnp.full_like(answers, IGNORE)], axis=1).reshape(-1)


@functools.cache
def _reads(start: int, steps: int) -> float:
  """Share of the symbol that runs on random tapes read more often."""
  random, read = np.random.default_rng(0), np.zeros(SYMBOLS)
  for _ in range(200):
    tape = dict(enumerate(random.integers(0, 2, start).tolist()))
    head, state = int(random.integers(start)), 0
    for _ in range(steps):
      symbol = tape.get(head, 0)
      read[symbol] += 1
      tape[head], move, state = RULES[state, symbol].tolist()
      if state == HALTED:
        break
      head += 2 * move - 1
  return float(read.max() / read.sum())
