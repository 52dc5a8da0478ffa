"""Multi-query associative recall ("Zoology", Arora et al. 2023, arXiv 2312.04927).

D keys with their values, then keys again, at each of which its value is due:

    k1 v1 k2 v2 ... kD vD  .. k7 . .. k2 . ..

Keys are ids 1..vocab/2 - 1, values vocab/2..vocab - 1, both without repeats. A query stands at one
of the places 2 D + 2 s, s drawn without replacement in proportion to (s + 1)^(power - 1), so that
with the paper's power of 0.01 queries crowd behind the pairs; 1 is uniform. Values are not put
into the input.

Args of the paper: (length, pairs) in (64, 4), (128, 8), (256, 16), (512, 64), vocab 8192.
Difference: the fill holds no key of the example (`filler="safe"`); the authors' may (`"official"`),
and comes from a generator that their seed does not set, so that no seed gives their examples.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field

FILLERS = ("safe", "official", "zeros")


@dataclasses.dataclass(frozen=True)
class MQAR(Task):
  """See the module.

  Attributes:
    pairs: D.   length: tokens, even, at least 4 D.   power: 1 spreads queries evenly.
    filler: "safe", "official" or "zeros".
    updates: so many of the keys get a second value after all first ones; the last one counts.
    absent: so many of the queries are for keys without a value, and the id 0 is due; with "zeros".
    repeats: times that each key is asked.

  Meta: `rank [T]`, place of the asked pair among the pairs, 0 where nothing is asked.

  Raises:
    ValueError: the queries do not fit.
  """

  pairs: int = 4
  length: int = 64
  vocab: int = 8192
  power: float = 0.01
  filler: str = "safe"
  updates: int = 0
  absent: int = 0
  repeats: int = 1
  number = 1

  def __post_init__(self):
    checks.positive(pairs=self.pairs, length=self.length, vocab=self.vocab, repeats=self.repeats)
    checks.one_of("filler", self.filler, FILLERS)
    if not 0 <= self.updates <= self.pairs:
      raise ValueError(f"updates={self.updates} must lie in 0..pairs={self.pairs}")
    if not 0 <= self.absent <= self.pairs:
      raise ValueError(f"absent={self.absent} must lie in 0..pairs={self.pairs}")
    if self.absent and self.filler != "zeros":
      raise ValueError(
        f"absent={self.absent} needs filler='zeros', not {self.filler!r}: a query for an unknown "
        "key would look like the fill"
      )
    least = 2 * ((1 + self.repeats) * self.pairs + self.updates)
    if self.length % 2 or self.length < least:
      raise ValueError(
        f"length={self.length} must be even and at least {least}: two tokens a pair, an update and "
        "a query"
      )
    most = self.vocab // 2 - 1
    if self.vocab % 2 or most < self.pairs + self.absent + self.updates:
      raise ValueError(
        f"vocab={self.vocab} must be even, and half of it hold the keys of pairs={self.pairs} and "
        f"absent={self.absent} and the values of updates={self.updates}"
      )

  @property
  def told(self) -> int:
    """Tokens before the queries."""
    return 2 * (self.pairs + self.updates)

  @property
  def chance(self) -> float:
    return 2 / self.vocab

  @property
  def floor(self) -> float:
    return max(self.absent, 1) / self.pairs

  @property
  def state_bits(self) -> float:
    d, each = self.pairs, math.log2(self.vocab // 2)
    return 2 * d * each - math.lgamma(d + 1) / math.log(2)

  def example(self, key: jax.Array) -> Batch:
    pairs, updates, told, half = self.pairs, self.updates, self.told, self.vocab // 2
    keys = 1 + draw.distinct(field(key, 0), half - 1, pairs + self.absent)
    values = half + draw.distinct(field(key, 1), half, pairs + updates)
    renewed = draw.distinct(field(key, 2), pairs, updates)
    last = values[:pairs].at[renewed].set(values[pairs:])
    owners = jnp.concatenate([keys[:pairs], keys[renewed]])

    space = (self.length - told) // 2
    place = told + 2 * draw.crowded(field(key, 3), space, self.power, pairs * self.repeats)
    due = jnp.concatenate([last, jnp.zeros(self.absent, jnp.int32)])
    asked = draw.distinct(field(key, 5), pairs, pairs - self.absent)
    asked = jnp.concatenate([asked, pairs + jnp.arange(self.absent)])
    asked = jnp.tile(asked, self.repeats)  # places are in random order

    inputs = self._fill(field(key, 4), keys[:pairs])
    inputs = inputs.at[:told].set(jnp.stack([owners, values], axis=1).reshape(-1))
    inputs = inputs.at[place].set(keys[asked])
    targets = jnp.full(self.length, IGNORE, jnp.int32).at[place].set(due[asked])
    rank = jnp.zeros(self.length, jnp.int32).at[place].set(asked)
    length = jnp.int32(self.length)
    return Batch(inputs, targets, targets != IGNORE, length, {"rank": rank})

  def _fill(self, key: jax.Array, keys: jax.Array) -> jax.Array:
    """Ids between the queries, `[T]`."""
    if self.filler == "zeros":
      return jnp.zeros(self.length, jnp.int32)
    if self.filler == "official":
      return jax.random.randint(key, (self.length,), 0, self.vocab)
    drawn = jax.random.randint(key, (self.length,), 0, self.vocab - len(keys))
    return draw.skipping(drawn, jnp.sort(keys))

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    told, at = self.told, jnp.arange(self.length)
    keys, values = inputs[:told:2], inputs[1:told:2]
    same = (inputs[:, None] == keys[None]) * jnp.arange(1, len(keys) + 1)[None]
    newest = jnp.max(same, axis=1)
    found = jnp.where(newest > 0, values[newest - 1], 0)
    asked = inputs != 0 if self.filler == "zeros" else newest > 0
    query = (at >= told) & (at % 2 == 0) & asked
    return jnp.where(query, found, IGNORE)
