"""Proactive interference: a stream of keys and values in which every key is told again and again
("Unable to Forget", Wang and Sun 2025, arXiv 2506.08184).

K keys are told U values each, all K U updates in random order in which no key follows itself; then
each key is asked once, in random order, for its last value (or, `asked="first"`, its first one):

    k3 v k1 v k3 v ... Q k2 Q k1 ...

With order="rounds" each key is told once a round, the rounds in random orders; then any stretch of
a stream of any length is made by itself (`chunk`).

A memory that overwrites needs no more state for U = 400 than for U = 2. Ids: 0 padding, 1 Q, then
the keys, then the values. Difference: keys and values are ids, not words of categories.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stretches import Stretches, tail
from memjax.tasks.task import IGNORE, Batch, field

QUESTION = 1
ORDERS = ("mixed", "by_key", "rounds")


@dataclasses.dataclass(frozen=True)
class Interference(Stretches):
  """See the module.

  Attributes:
    keys: K.   updates: U values a key, all different.
    values: P values that a key may have.
    pool: "own", each key has values of its own; or "shared".
    order: "mixed"; "by_key", all updates of a key together, keys in random order; or "rounds".
    asked: "last" or "first" value.

  Meta: `key [T]`, which one is asked.

  Raises:
    ValueError: more updates than values, or too few keys.
  """

  keys: int = 8
  updates: int = 4
  values: int = 400
  pool: str = "own"
  order: str = "mixed"
  asked: str = "last"
  number = 2

  def __post_init__(self):
    checks.positive(keys=self.keys, updates=self.updates, values=self.values)
    checks.one_of("pool", self.pool, ("own", "shared"))
    checks.one_of("order", self.order, ORDERS)
    checks.one_of("asked", self.asked, ("last", "first"))
    if self.updates > self.values:
      raise ValueError(
        f"updates={self.updates} must not exceed values={self.values}: a key's are all different"
      )
    if self.order == "mixed" and self.keys == 1 and self.updates > 1:
      raise ValueError("keys=1 follows itself: give more keys, or order='by_key'")

    if self.order == "rounds" and self.keys < 3:
      raise ValueError(f"keys={self.keys} must be at least 3 with order='rounds'")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return 2 + self.keys + self.values * (self.keys if self.pool == "own" else 1)

  @property
  def length(self) -> int:  # type: ignore[override]
    """Tokens of an example."""
    return 2 * self.keys * (self.updates + 1)

  @property
  def chance(self) -> float:
    return 1 / self.values

  @property
  def floor(self) -> float:
    return 1 / self.updates

  @property
  def state_bits(self) -> float:
    return self.keys * (math.log2(self.keys) + math.log2(self.values))

  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    """As of any task with stretches.

    Raises:
      ValueError: the order is another than "rounds".
    """
    if self.order != "rounds":
      raise ValueError(f"order={self.order!r} is drawn whole; stretches need order='rounds'")
    n, told = self.keys, 2 * self.keys * self.updates
    keys = jax.random.split(field(key, 1), n)

    def values(turns):  # of all keys, [n, turns]
      chosen = jax.vmap(lambda key: draw.permuted(key, self.values, turns))(keys)
      return 2 + n + chosen + (self.values * jnp.arange(n)[:, None] if self.pool == "own" else 0)

    first, count = jnp.asarray(start) // (2 * n), (size - 2) // (2 * n) + 2
    turns = jnp.minimum(first + jnp.arange(count), self.updates - 1)
    kinds = draw.rounds(field(key, 0), n, first, count)
    told_as = jnp.take_along_axis(values(turns).T, kinds, axis=1)
    pairs = jnp.stack([2 + kinds, told_as], axis=-1).reshape(-1)
    stream = jax.lax.dynamic_slice_in_dim(pairs, start - first * 2 * n, size)

    order = draw.distinct(field(key, 2), n, n)
    questions = jnp.stack([jnp.full(n, QUESTION), 2 + order], axis=1).reshape(-1)
    due = values(jnp.full(1, self.updates - 1 if self.asked == "last" else 0))[order, 0]
    due = jnp.stack([jnp.full(n, IGNORE), due], axis=1).reshape(-1)
    which = jnp.stack([jnp.zeros(n, jnp.int32), order], axis=1).reshape(-1)
    t = start + jnp.arange(size)
    inputs = jnp.where(t < told, stream, tail(questions, start, size, told, 0)).astype(jnp.int32)
    targets = tail(due, start, size, told, IGNORE)
    meta = {"key": tail(which, start, size, told, 0)}
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), meta)

  def example(self, key: jax.Array) -> Batch:
    if self.order == "rounds":
      return self.stretch(key, 0, self.length)
    n, told = self.keys, 2 * self.keys * self.updates
    if self.order == "mixed":
      counts = jnp.full(n, self.updates, jnp.int32)
      kinds = draw.without_repeats(field(key, 0), counts, n * self.updates)
    else:
      kinds = jnp.repeat(draw.distinct(field(key, 0), n, n), self.updates)
    same = kinds[:, None] == jnp.arange(n)[None]
    turn = jnp.take_along_axis(jnp.cumsum(same, axis=0), kinds[:, None], axis=1)[:, 0] - 1
    choose = lambda key: draw.distinct(key, self.values, self.updates)  # noqa: E731
    chosen = jax.vmap(choose)(jax.random.split(field(key, 1), n))  # [K, U]
    if self.pool == "own":
      chosen = chosen + self.values * jnp.arange(n)[:, None]
    chosen = chosen + 2 + n
    stream = jnp.stack([2 + kinds, chosen[kinds, turn]], axis=1).reshape(-1)

    order = draw.distinct(field(key, 2), n, n)
    questions = jnp.stack([jnp.full(n, QUESTION), 2 + order], axis=1).reshape(-1)
    inputs = jnp.concatenate([stream, questions]).astype(jnp.int32)
    place = told + 1 + 2 * jnp.arange(n)
    due = chosen[order, -1 if self.asked == "last" else 0]
    targets = jnp.full(self.length, IGNORE, jnp.int32).at[place].set(due)
    which = jnp.zeros(self.length, jnp.int32).at[place].set(order)
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), {"key": which})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length

    def read(carry, pair):
      known, seen = carry
      first, second = pair
      asking = first == QUESTION
      key = jnp.where(asking, second, first) - 2
      write = ~asking & ((self.asked == "last") | ~seen[key])
      known = jnp.where(write, known.at[key].set(second), known)
      return (known, seen.at[key].set(True)), jnp.where(asking, known[key], IGNORE)

    start = jnp.zeros(self.keys, jnp.int32), jnp.zeros(self.keys, bool)
    _, answers = jax.lax.scan(read, start, inputs.reshape(-1, 2))
    return jnp.stack([jnp.full_like(answers, IGNORE), answers], axis=1).reshape(-1)

  def history(self, predicted: jax.Array, batch: Batch) -> jax.Array:
    """Which of the asked key's values an answer is, `[B, T] int32`: 0 the first, U - 1 the last; -1
    another key's, -2 none that was told, -3 where nothing is asked."""
    told = 2 * self.keys * self.updates
    owners, values = batch.inputs[:, :told:2] - 2, batch.inputs[:, 1:told:2]
    mine = owners[:, None] == batch.meta["key"][:, :, None]  # [B, T, K U]
    hit = values[:, None] == predicted[:, :, None]
    turn = jnp.cumsum(mine, axis=-1) - 1
    found = jnp.max(jnp.where(mine & hit, turn, -1), axis=-1)
    found = jnp.where((found < 0) & ~jnp.any(hit, axis=-1), -2, found)
    return jnp.where(batch.mask, found, -3)
