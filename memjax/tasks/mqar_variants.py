"""Relatives of `mqar.MQAR` ("Zoology", Arora et al. 2023, arXiv 2312.04927, and its repository).

`CompositionalMQAR`: a key is two tokens, and all pairs of g first and g second ones are keys, so
that neither part alone tells the value:

    a1 b1 v1 a1 b2 v2 a2 b1 v3 a2 b2 v4  .. a2 b1 . .. a1 b1 . ..      (triples in random order)

`ContinuousMQAR`: a frame is `[key, value]`; keys are vectors of length about 1 that no other
example has, values vectors of bits, +1 and -1; in a query the value's half is 0:

    [k1 v1] [k2 v2] .. [kD vD]  .. [k2 0] .. [k1 0] ..

Both crowd their queries behind the pairs as MQAR does (`power`). Differences from the authors'
code: the fill holds no key of the example, and the seed decides it; values of the continuous form
are bits, each due, where they have ids.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field
from memjax.tasks.vectors import VectorTask, majority


@dataclasses.dataclass(frozen=True)
class CompositionalMQAR(Task):
  """See the module.

  Attributes:
    grid: g; there are g^2 keys.   length: tokens, at least 6 g^2.
    vocab: ids; a third each are first parts, second parts and values.   power: 1 spreads evenly.

  Meta: `rank [T]`, place of the asked key among the triples, 0 where nothing is asked.

  Raises:
    ValueError: the queries or the keys do not fit.
  """

  grid: int = 2
  length: int = 64
  vocab: int = 8192
  power: float = 0.01
  number = 90

  def __post_init__(self):
    checks.positive(grid=self.grid, length=self.length, vocab=self.vocab)
    if self.length < 6 * self.keys:
      raise ValueError(
        f"length={self.length} must be at least {6 * self.keys}: three tokens a key and a query "
        f"each of grid={self.grid}"
      )
    if self.vocab % 3 or self.third < self.keys + 1:
      raise ValueError(
        f"vocab={self.vocab} must be a multiple of 3 and at least {3 * (self.keys + 1)}: a third "
        f"holds the values of grid={self.grid}"
      )

  @property
  def keys(self) -> int:
    return self.grid**2

  @property
  def third(self) -> int:
    return self.vocab // 3

  @property
  def chance(self) -> float:
    return 1 / self.third

  @property
  def floor(self) -> float:
    """Any of the values told."""
    return 1 / self.keys

  @property
  def state_bits(self) -> float:
    """Both sets of parts, and the value of each pair."""
    parts = 2 * math.log2(math.comb(self.third - 1, self.grid))
    return parts + self.keys * math.log2(self.third)

  def example(self, key: jax.Array) -> Batch:
    g, third, told = self.grid, self.third, 3 * self.keys
    firsts = 1 + draw.distinct(field(key, 0), third - 1, g)
    seconds = third + draw.distinct(field(key, 1), third, g)
    values = 2 * third + draw.distinct(field(key, 2), third, self.keys)
    cell = draw.distinct(field(key, 3), self.keys, self.keys)
    first, second = firsts[cell // g], seconds[cell % g]
    asked = draw.distinct(field(key, 4), self.keys, self.keys)
    place = told + 3 * draw.crowded(field(key, 5), (self.length - told) // 3, self.power, self.keys)

    drawn = jax.random.randint(field(key, 6), (self.length,), 0, self.vocab - 2 * g)
    inputs = draw.skipping(drawn, jnp.sort(jnp.concatenate([firsts, seconds])))
    inputs = inputs.at[:told].set(jnp.stack([first, second, values], axis=1).reshape(-1))
    inputs = inputs.at[place].set(first[asked]).at[place + 1].set(second[asked])
    targets = jnp.full(self.length, IGNORE, jnp.int32).at[place + 1].set(values[asked])
    rank = jnp.zeros(self.length, jnp.int32).at[place + 1].set(asked)
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), {"rank": rank})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    told = 3 * self.keys
    before = jnp.roll(inputs, 1)
    triples = inputs[:told].reshape(-1, 3)
    same = (before[:, None] == triples[None, :, 0]) & (inputs[:, None] == triples[None, :, 1])
    value = triples[jnp.argmax(same, axis=1), 2]
    query = same.any(axis=1) & (jnp.arange(self.length) >= told)
    return jnp.where(query, value, IGNORE)

  def closed_book(self, batch: Batch) -> Batch:
    """Without the values."""
    at = jnp.arange(self.length)
    value = (at < 3 * self.keys) & (at % 3 == 2)
    return dataclasses.replace(batch, inputs=jnp.where(value[None], 0, batch.inputs))


@dataclasses.dataclass(frozen=True)
class ContinuousMQAR(VectorTask):
  """See the module.

  Attributes:
    pairs: D.   length: frames, at least 2 D.   key_dim: numbers of a key.   bits: of a value.
    power: 1 spreads queries evenly.

  Meta: `rank [T]`, place of the asked pair among the pairs, 0 where nothing is asked.

  Raises:
    ValueError: the queries do not fit.
  """

  pairs: int = 4
  length: int = 32
  key_dim: int = 32
  bits: int = 8
  power: float = 0.01
  number = 91

  def __post_init__(self):
    checks.positive(pairs=self.pairs, key_dim=self.key_dim, bits=self.bits)
    if self.length < 2 * self.pairs:
      raise ValueError(
        f"length={self.length} must be at least {2 * self.pairs}: a frame and a query each of "
        f"pairs={self.pairs}"
      )

  @property
  def inputs_size(self) -> int:
    return self.key_dim + self.bits

  @property
  def outputs_size(self) -> int:
    return self.bits

  @property
  def floor(self) -> float:
    """How many values had a 1 at a place is known."""
    return majority(self.pairs)

  @property
  def state_bits(self) -> float:
    """The values alone: keys are real numbers."""
    return float(self.pairs * self.bits)

  def example(self, key: jax.Array) -> Batch:
    # Uniform and not normal: the same bits on every platform.
    size = (3 / self.key_dim) ** 0.5
    keys = size * jax.random.uniform(field(key, 0), (self.pairs, self.key_dim), minval=-1)
    values = draw.bits(field(key, 1), self.pairs, self.bits)
    asked = draw.distinct(field(key, 2), self.pairs, self.pairs)
    place = self.pairs + draw.crowded(
      field(key, 3), self.length - self.pairs, self.power, self.pairs
    )

    inputs = jnp.zeros((self.length, self.inputs_size))
    inputs = inputs.at[: self.pairs].set(jnp.concatenate([keys, 2 * values - 1], axis=1))
    inputs = inputs.at[place, : self.key_dim].set(keys[asked])
    targets = jnp.zeros((self.length, self.bits)).at[place].set(values[asked])
    mask = jnp.zeros(self.length, bool).at[place].set(True)
    rank = jnp.zeros(self.length, jnp.int32).at[place].set(asked)
    return Batch(inputs, targets, mask, jnp.int32(self.length), {"rank": rank})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    keys, values = inputs[:, : self.key_dim], inputs[:, self.key_dim :]
    told = jnp.any(values != 0, axis=1)
    distance = jnp.sum(jnp.square(keys[:, None] - keys[None]), axis=-1)
    found = values[jnp.argmin(jnp.where(told[None], distance, jnp.inf), axis=1)] > 0
    query = ~told & jnp.any(keys != 0, axis=1)
    return (found & query[:, None]).astype(jnp.float32)
