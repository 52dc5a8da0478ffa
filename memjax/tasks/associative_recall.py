"""The associative recall task of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401).

m items of a few vectors of random bits, a delimiter before each; then one of them, not the last,
between two delimiters of another channel: the item after it is due in the frames that follow.

    * a1 a2 a3 * b1 b2 b3 * c1 c2 c3 ? a1 a2 a3 ? .  .  .  (padding)
                                                  b1 b2 b3  due

The paper: 3 vectors of 6 bits, m in 2..6, asked up to 20.
"""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.copying import Copies
from memjax.tasks.task import Batch, field
from memjax.tasks.vectors import VectorTask, majority

SURE = 30  # bits in which items differ at least once, where they have more


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(VectorTask):
  """See the module. Channels: the bits, the delimiter of items, that of the query;
  T = (vectors + 1) most + 2 vectors + 2. No two items of a sequence are equal.

  Attributes:
    fewest, most: m is drawn evenly from these.   vectors: of an item.   bits: of a vector.

  Meta: `items [B]`, m; `age [B]`, items after the asked one.

  Raises:
    ValueError: one item has none after it, or there are fewer different items than `most`.
  """

  fewest: int = 2
  most: int = 6
  vectors: int = 3
  bits: int = 6
  number = 12

  def __post_init__(self):
    checks.positive(vectors=self.vectors, bits=self.bits)
    _at_least_two(self.fewest, self.most)
    if 2 ** min(self.vectors * self.bits, SURE) < self.most:
      raise ValueError(f"vectors={self.vectors} of bits={self.bits} cannot differ in {self.most}")

  @property
  def inputs_size(self) -> int:
    return self.bits + 2

  @property
  def outputs_size(self) -> int:
    return self.bits

  @property
  def floor(self) -> float:
    """Of who says the commoner bit of all items that may follow: those after the first that are
    not the asked one."""
    of_m = []
    for m in range(self.fewest, self.most + 1):
      others = (m - 2) * majority(m - 2) if m > 2 else 0.0
      of_m.append((majority(m - 1) + others) / (m - 1))  # the first is asked in one of m - 1
    return sum(of_m) / len(of_m)

  @property
  def state_bits(self) -> float:
    return float(self.most * self.vectors * self.bits)

  def example(self, key: jax.Array) -> Batch:
    m = jax.random.randint(field(key, 0), (), self.fewest, self.most + 1)
    asked = jax.random.randint(field(key, 1), (), 0, m - 1)
    width = self.vectors * self.bits
    sure = min(width, SURE)
    items = draw.unpack(draw.distinct(field(key, 2), 2**sure, self.most), sure)
    if width > sure:
      items = jnp.concatenate([items, draw.bits(field(key, 3), self.most, width - sure)], axis=1)
    made = _layout(m, asked, items.reshape(-1, self.bits), self.vectors)
    length = (self.vectors + 1) * m + 2 * self.vectors + 2
    return Batch(
      made.inputs, made.targets, made.mask, length, {"items": m, "age": m - 1 - asked}
    )  # fmt: skip

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    each, bits = self.vectors, inputs[:, : self.bits]
    t = jnp.arange(inputs.shape[0])
    border = inputs[:, self.bits + 1] == 1
    first, last = jnp.argmax(border), t.size - 1 - jnp.argmax(border[::-1])
    after = jnp.stack([jnp.roll(bits, -1 - i, axis=0) for i in range(each)], axis=1)  # [T, each, .]
    same = jnp.all(after == after[first][None], axis=(1, 2)) & (inputs[:, self.bits] == 1)
    found = jnp.argmax(same) + each + 1  # the delimiter of the item that is due
    since = t - last - 1
    due = (since >= 0) & (since < each)
    return jnp.where(due[:, None], after[found, jnp.clip(since, 0, each - 1)], 0)


def sample(
  key: jax.Array, batch: int, *, fewest: int = 2, most: int = 6, vectors: int = 3, bits: int = 6
) -> Copies:
  """`batch` sequences of m ~ U{fewest..most} items; two items may be equal.

  Returns:
    inputs `[B, T, bits + 2]` (delimiter of items, then of the query, after the bits), targets
    `[B, T, bits]`, mask `[B, T]`; T = (vectors + 1) most + 2 vectors + 2.

  Raises:
    ValueError: one item has none after it.
  """
  _at_least_two(fewest, most)
  keys = jax.random.split(key, 3)
  m = jax.random.randint(keys[0], (batch, 1), fewest, most + 1)
  asked = jax.random.randint(keys[1], (batch, 1), 0, m - 1)
  items = jax.random.bernoulli(keys[2], 0.5, (batch, most * vectors, bits)).astype(jnp.float32)
  lay = lambda m, asked, items: _layout(m, asked, items, vectors)  # noqa: E731
  return jax.vmap(lay)(m[:, 0], asked[:, 0], items)


def _layout(m: jax.Array, asked: jax.Array, items: jax.Array, vectors: int) -> Copies:
  """One sequence of the first m items of `items [most * vectors, bits]`."""
  each = vectors + 1
  t = jnp.arange(each * (items.shape[0] // vectors) + 2 * vectors + 2)
  since = t - each * m  # frames since the query's first delimiter
  shown, query = (since < 0) & (t % each > 0), (since > 0) & (since < each)
  due = (since > each) & (since <= each + vectors)
  at = jnp.where(shown, t // each * vectors + t % each - 1, 0)
  at = jnp.where(query, asked * vectors + since - 1, at)
  at = jnp.where(due, (asked + 1) * vectors + since - each - 1, at)
  bits_at = items[at]
  item = ((since < 0) & (t % each == 0)).astype(jnp.float32)
  border = ((since == 0) | (since == each)).astype(jnp.float32)
  inputs = jnp.column_stack([bits_at * (shown | query)[:, None], item, border])
  return Copies(inputs, bits_at * due[:, None], due)


def _at_least_two(fewest: int, most: int):
  if not 2 <= fewest <= most:
    raise ValueError(f"fewest={fewest}, most={most} must satisfy 2 <= fewest <= most")
