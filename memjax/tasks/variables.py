"""Variable tracking ("RULER", Hsieh et al. 2024, arXiv 2404.06654): which names have this value?

Each of C chains begins with `SET x1 v`, and goes on with `SET x2 x1` .. over some hops. The
statements stand anywhere in a background, and at the end the value of one chain is asked: its names
are due in the order of the chain, the first at v, each further one at the one before it:

    .. SET x1 v .. SET y1 w .. SET x2 x1 .. SET x3 x2 ..  ASK v  x1 x2
                                                              x1 x2 x3   due

order="sorted" keeps the statements of a chain in order, so that one pass is enough; in "shuffled"
ones a name may be set to one that is set later. The paper: one chain of 4 hops, sorted.

Ids: 0 padding, 1 SET, 2 ASK, then the names, the values and the text.
Differences: ids, not words; names are due in order, not in any; no worked example stands before.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stretches import Stretches, integers, lay, tail
from memjax.tasks.task import IGNORE, Batch, field

SET, ASK, FIRST = 1, 2, 3
ORDERS = ("sorted", "shuffled")


@dataclasses.dataclass(frozen=True)
class VariableTracking(Stretches):
  """See the module.

  Attributes:
    length: tokens, the question included.   chains: C.   hops: statements after the first of each.
    order: "sorted" or "shuffled".
    keys: ids of names.   values: ids of values.   vocab: of all; text has the rest, drawn evenly.

  Meta: `hop [T]` of the name that is due. Any stretch is made by itself (`chunk`).

  Raises:
    ValueError: the statements do not fit, or there are too few ids.
  """

  length: int = 512
  chains: int = 1
  hops: int = 4
  order: str = "sorted"
  keys: int = 512
  values: int = 1024
  vocab: int = 4096
  number = 15

  def __post_init__(self):
    checks.positive(length=self.length, chains=self.chains, hops=self.hops)
    checks.positive(keys=self.keys, values=self.values)
    checks.one_of("order", self.order, ORDERS)
    if self.told < 3 * self.names:
      least = 3 * self.names + self.hops + 2
      raise ValueError(f"length={self.length} must be at least {least} for chains and question")
    if self.keys < self.names or self.values < self.chains:
      raise ValueError(
        f"keys={self.keys} must be at least the {self.names} names, values={self.values} the chains"
      )
    if self.vocab < FIRST + self.keys + self.values + 1:
      raise ValueError(f"vocab={self.vocab} must exceed {FIRST} + keys + values")

  @property
  def names(self) -> int:
    """Names of all chains."""
    return self.chains * (self.hops + 1)

  @property
  def told(self) -> int:
    """Tokens before the question."""
    return self.length - self.hops - 2

  @property
  def chance(self) -> float:
    return 1 / self.keys

  @property
  def floor(self) -> float:
    """Of who says a name that was told and was not said yet."""
    left = range(self.names, self.names - self.hops - 1, -1)
    return sum(1 / n for n in left) / (self.hops + 1)

  @property
  def state_bits(self) -> float:
    return self.names * math.log2(self.keys) + self.chains * math.log2(self.values)

  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    each, n, told = self.hops + 1, self.names, self.told
    names = FIRST + draw.distinct(field(key, 0), self.keys, n).reshape(self.chains, each)
    values = FIRST + self.keys + draw.distinct(field(key, 1), self.values, self.chains)
    whose = jnp.concatenate([values[:, None], names[:, :-1]], axis=1)  # what each name is set to
    order = draw.distinct(field(key, 2), n, n)
    if self.order == "sorted":  # the chain at each place; its statements fill them in turn
      chain = order // each
      order = jnp.zeros(n, jnp.int32).at[jnp.argsort(chain, stable=True)].set(jnp.arange(n))
    marks = jnp.full(n, SET, jnp.int32)
    told_as = jnp.stack([marks, names.reshape(-1)[order], whose.reshape(-1)[order]], axis=1)
    gaps = jax.random.randint(field(key, 3), (n,), 0, told - 3 * n + 1)
    places = jnp.sort(gaps) + 3 * jnp.arange(n)
    text = integers(field(key, 4), start, size, FIRST + self.keys + self.values, self.vocab)

    asked = jax.random.randint(field(key, 5), (), 0, self.chains)
    ask = jnp.stack([jnp.int32(ASK), values[asked]])
    question = jnp.concatenate([ask, names[asked, :-1]])
    due = jnp.concatenate([jnp.full(1, IGNORE, jnp.int32), names[asked]])
    hop = jnp.maximum(jnp.arange(each + 1) - 1, 0)
    before = start + jnp.arange(size) < told
    inputs = jnp.where(
      before, lay(text, start, places, told_as), tail(question, start, size, told, 0)
    )  # fmt: skip
    targets = tail(due, start, size, told, IGNORE)
    meta = {"hop": tail(hop, start, size, told, 0)}
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(self.length), meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    ids = FIRST + self.keys + self.values
    name, of = jnp.roll(inputs, -1), jnp.roll(inputs, -2)
    child = jnp.full(ids, IGNORE, jnp.int32)  # the name that is set to each name or value
    child = child.at[jnp.where(inputs == SET, of, ids)].set(name, mode="drop")
    place = jnp.argmax(inputs == ASK)

    def follow(known, _):
      return child[known], child[known]

    chain = jax.lax.scan(follow, inputs[place + 1], None, self.hops + 1)[1]
    since = jnp.arange(self.length) - place - 1
    due = (since >= 0) & (since <= self.hops) & (jnp.arange(self.length) < length)
    return jnp.where(due, chain[jnp.clip(since, 0, self.hops)], IGNORE)
