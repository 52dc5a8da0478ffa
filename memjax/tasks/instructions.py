"""Instructions that change, over many sessions ("MemoryCode", Rakotonirina et al. 2025): which are
in force?

    SESSION .. SET slot value .. SET slot value ..  SESSION .. ..  ASK slot  ASK slot ..

A session is 10 to 40 tokens of filler, in some of them one or two instructions: a value for a slot,
new, or in place of its last. At the end slots are asked, any number of times each; the value in
force is due at the slot, or NONE if it never had one. Sizes are the authors' generator's: 51 slots
of 8 values; 50 to 70 % of the sessions instruct (the one, if it is alone; up to all of them below
six sessions); an instruction updates rather than adds with a probability from 0.3 to 0.7, drawn for
each example, 0.5 from 50 sessions on; never the same slot twice in a session.

Ids: 0 padding (after the end), 1 SESSION, 2 SET, 3 ASK, 4 NONE, slots, values, filler.
Differences: ids in place of dialogues and of rules for code; every slot can be updated, where the
authors update ten; filler is noise, without the pseudo-instructions of theirs.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field

SESSION, SET, ASK, NONE, FIRST = 1, 2, 3, 4, 5
MOST = 2  # instructions in a session


@dataclasses.dataclass(frozen=True)
class Instructions(Task):
  """See the module.

  Attributes:
    sessions: of an example.   queries: slots asked at its end.
    size: least and most tokens of a session.
    slots, values: their numbers.   filler: ids of filler.

  One query in values + 1 is about a slot without a value, as long as there is one, so that no
  answer is likelier than another.

  Meta: `age [T]`, sessions since the asked slot got its value; `updates [T]`, how often it got one,
  0 where NONE is due.

  Raises:
    ValueError: a session does not hold two instructions.
  """

  sessions: int = 10
  queries: int = 8
  size: tuple[int, int] = (10, 40)
  slots: int = 51
  values: int = 8
  filler: int = 64
  number = 53

  def __post_init__(self):
    checks.positive(sessions=self.sessions, queries=self.queries, filler=self.filler)
    if self.slots < MOST + 1 or self.values < 2:
      raise ValueError(f"slots={self.slots} must be at least 3, and values={self.values} 2")
    if not 1 + 3 * MOST <= self.size[0] <= self.size[1]:
      raise ValueError(f"size={self.size} must be 7 <= least <= most: two instructions")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return FIRST + self.slots + self.values + self.filler

  @property
  def chance(self) -> float:
    return 1 / (1 + self.values)

  @property
  def floor(self) -> float:
    """Of the value that was told last, for every slot; about, from the mean number of slots."""
    share = 1.0 if self.sessions == 1 else 0.75 if self.sessions < 6 else 0.6
    told = max(1.0, share * self.sessions) * (1 + MOST) / 2
    slots = min(self.slots, 1 + (told - 1) / 2)
    return self.values / (1 + self.values) * (1 / slots + (1 - 1 / slots) / self.values)

  @property
  def state_bits(self) -> float:
    return self.slots * math.log2(1 + self.values)

  def example(self, key: jax.Array) -> Batch:
    told, values, since, times = self._history(key)
    sessions = self._sessions(key, told)
    known = values >= 0
    absent = jax.random.bernoulli(field(key, 7), 1 / (1 + self.values), (self.queries,))
    absent = absent & ~jnp.all(known)
    asked = _pick(field(key, 8), jnp.where(absent[:, None], ~known[None], known[None]))

    due = jnp.where(absent, NONE, FIRST + self.slots + values[asked])
    ask = jnp.stack([jnp.full(self.queries, ASK), FIRST + asked], axis=1)
    tokens = jnp.concatenate([sessions.reshape(-1), ask.reshape(-1)]).astype(jnp.int32)
    at = sessions.size + 2 * jnp.arange(self.queries) + 1
    beside = lambda fill, x: jnp.full(tokens.shape, fill, jnp.int32).at[at].set(x)  # noqa: E731
    age = jnp.where(absent, 0, self.sessions - 1 - since[asked])

    there = tokens != PAD  # sessions are of many sizes: close the gaps
    to = jnp.where(there, jnp.cumsum(there) - 1, len(tokens))
    close = lambda x, fill: jnp.full_like(x, fill).at[to].set(x, mode="drop")  # noqa: E731
    targets = close(beside(IGNORE, due), IGNORE)
    meta = {"age": close(beside(0, age), 0), "updates": close(beside(0, times[asked]), 0)}
    length = jnp.sum(there).astype(jnp.int32)
    return Batch(close(tokens, PAD), targets, targets != IGNORE, length, meta)

  def _history(self, key: jax.Array) -> tuple[jax.Array, ...]:
    """Slots and values told in each session, `[n, 2, 2]`, -1 for none; then of each slot its value
    or -1, the session that it was told in, and how often it was told one."""
    n, draws = self.sessions, jax.random.uniform(field(key, 0), (self.sessions, MOST, 3))
    low, high = (1.0, 1.0) if n == 1 else (0.5, 1.0) if n < 6 else (0.5, 0.7)
    share = jax.random.uniform(field(key, 1), (), minval=low, maxval=high)
    active = jnp.argsort(jnp.argsort(jax.random.bits(field(key, 2), (n,))))
    active = active < jnp.maximum(1, jnp.round(share * n))
    count = active * jax.random.randint(field(key, 3), (n,), 1, MOST + 1)
    update = jax.random.uniform(field(key, 4), (), minval=0.3, maxval=0.7)
    update = jnp.where(n >= 50, 0.5, update)

    def session(carry, given):
      number, count, draws = given
      free, told = jnp.ones(self.slots, bool), []
      for j, (which, kind, value) in enumerate(draws):
        values, since, times = carry
        old, new = free & (values >= 0), free & (values < 0)
        renew = jnp.any(old) & ((kind < update) | ~jnp.any(new))
        slot = _nth(jnp.where(renew, old, new), which)
        base = jnp.where(renew, self.values - 1, self.values)  # another value than its last
        drawn = jnp.minimum((value * base).astype(jnp.int32), base - 1)
        drawn = jnp.where(renew, (values[slot] + 1 + drawn) % self.values, drawn)
        here = (jnp.arange(self.slots) == slot) & (j < count)
        free = free & ~here
        carry = (
          jnp.where(here, drawn, values),
          jnp.where(here, number, since),
          times + here,
        )
        told.append(jnp.where(j < count, jnp.stack([slot, drawn]), -1))
      return carry, jnp.stack(told)

    nothing = jnp.zeros(self.slots, jnp.int32)
    start = (nothing - 1, nothing, nothing)
    last, told = jax.lax.scan(session, start, (jnp.arange(n), count, draws))
    return told, *last

  def _sessions(self, key: jax.Array, told: jax.Array) -> jax.Array:
    """Tokens of sessions `[n, most]`, PAD after their ends."""
    n, (least, most) = self.sessions, self.size
    size = jax.random.randint(field(key, 5), (n, 1), least, most + 1)
    first = FIRST + self.slots + self.values
    tokens = jax.random.randint(field(key, 6), (n, most), first, first + self.filler)
    there = told[..., 0] >= 0
    free = size - 1 - 3 * jnp.sum(there, axis=1, keepdims=True)
    gaps = (jax.random.uniform(field(key, 9), (n, MOST)) * (free + 1)).astype(jnp.int32)
    gaps = jnp.where(there[:, -1:], jnp.sort(gaps), gaps)
    at = 1 + gaps + 3 * jnp.arange(MOST)[None]
    at = jnp.where(there, at, most)[..., None] + jnp.arange(3)[None, None]  # [n, 2, 3]
    said = jnp.stack([FIRST + told[..., 0], FIRST + self.slots + told[..., 1]], axis=-1)
    said = jnp.concatenate([jnp.full((n, MOST, 1), SET), said], axis=-1)
    tokens = tokens.at[:, 0].set(SESSION)
    tokens = tokens.at[jnp.arange(n)[:, None, None], at].set(said, mode="drop")
    return jnp.where(jnp.arange(most)[None] < size, tokens, PAD)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length

    def read(carry, tokens):
      before, last, known = carry  # the two tokens before this one, and the values in force
      due = jnp.where(last == ASK, known[tokens], IGNORE)
      known = jnp.where(before == SET, known.at[last].set(tokens), known)
      return (last, tokens, known), due

    start = jnp.int32(PAD), jnp.int32(PAD), jnp.full(self.vocab, NONE, jnp.int32)
    return jax.lax.scan(read, start, inputs)[1]

  def closed_book(self, batch: Batch) -> Batch:
    """The questions without the sessions."""
    asked = batch.mask | (batch.inputs == ASK)
    return dataclasses.replace(batch, inputs=jnp.where(asked, batch.inputs, PAD))


def _nth(allowed: jax.Array, share: jax.Array) -> jax.Array:
  """One of the places that are `allowed [n]`, by a share in [0, 1) of their number."""
  count = jnp.cumsum(allowed)
  nth = jnp.minimum((share * count[-1]).astype(jnp.int32), count[-1] - 1)
  return jnp.argmax(count > nth).astype(jnp.int32)


def _pick(key: jax.Array, allowed: jax.Array) -> jax.Array:
  """An allowed place of each row `[Q, n]`, drawn evenly."""
  return jax.vmap(_nth)(allowed, jax.random.uniform(key, allowed.shape[:1]))
