"""Induction heads ("Mamba", Gu and Dao 2023, arXiv 2312.00752): what came after the special id?

One special id stands at a random place, followed by x, and again as the last token, where x is due.
Ids: 0 .. vocab - 2 anything, vocab - 1 special. The paper: vocab 16, trained on 256 tokens, asked
up to 2^20. `decoys` more pairs of special id and another token come before it: the last one counts.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field


@dataclasses.dataclass(frozen=True)
class Induction(Task):
  """See the module.

  Attributes:
    length: tokens, even.   decoys: earlier pairs.

  Meta: `distance [T]` from the special id that counts to the last token.

  Raises:
    ValueError: the pairs do not fit.
  """

  length: int = 256
  vocab: int = 16
  decoys: int = 0
  number = 4

  def __post_init__(self):
    checks.positive(length=self.length)
    if self.vocab < 3 or self.decoys < 0:
      raise ValueError(f"vocab={self.vocab} must be at least 3, decoys={self.decoys} at least 0")
    if self.length < 2 * self.decoys + 3:
      raise ValueError(f"length={self.length} must be at least {2 * self.decoys + 3}")

  @property
  def chance(self) -> float:
    return 1 / (self.vocab - 1)

  @property
  def floor(self) -> float:
    return max(self.chance, 1 / (1 + self.decoys) if self.decoys else 0.0)

  @property
  def state_bits(self) -> float:
    return math.log2(self.vocab - 1)

  def example(self, key: jax.Array) -> Batch:
    last, count = self.length - 1, 1 + self.decoys
    ids = jax.random.randint(field(key, 0), (self.length,), 0, self.vocab - 1)
    # Gaps first, then the pairs between them: no two overlap.
    gaps = draw.spots(field(key, 1), last - count, count)
    places = gaps + jnp.arange(count)
    inputs = ids.astype(jnp.int32).at[places].set(self.vocab - 1).at[last].set(self.vocab - 1)
    targets = jnp.full(self.length, IGNORE, jnp.int32).at[last].set(inputs[places[-1] + 1])
    distance = jnp.zeros(self.length, jnp.int32).at[last].set(last - places[-1])
    total = jnp.int32(self.length)
    return Batch(inputs, targets, targets != IGNORE, total, {"distance": distance})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    at = jnp.arange(self.length)
    before = (inputs == self.vocab - 1) & (at < length - 1)
    place = jnp.max(jnp.where(before, at, 0))
    return jnp.where(at == length - 1, inputs[place + 1], IGNORE)
