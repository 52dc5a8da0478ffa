"""What came most often: the majority circuits of "Zoology" (Arora et al. 2023, arXiv 2312.04927)
and its repository; cumulative parity, the third of them, is a form of `parity.Parity`.

    3 1 3 2 1 3 >          the commonest symbol is due at >; of equally common ones the lowest

Difference: the authors' code breaks a tie by changing one symbol, where there are more than two.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks.task import IGNORE, Batch, Task, field

END = 1
SYMBOL = 2


@dataclasses.dataclass(frozen=True)
class Majority(Task):
  """See the module.

  Attributes:
    length: symbols, before >.   symbols: kinds of them, at least 2; drawn uniformly.

  Meta: `lead [T]`, by how much the commonest leads before the next, 0 for a tie.
  """

  length: int = 15
  symbols: int = 2
  number = 92

  def __post_init__(self):
    checks.positive(length=self.length)
    if self.symbols < 2:
      raise ValueError(f"symbols={self.symbols} must be at least 2")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return SYMBOL + self.symbols

  @property
  def chance(self) -> float:
    return 1 / self.symbols

  @property
  def floor(self) -> float:
    """Any of the symbols that came."""
    kinds = {0: 1.0}  # of how many kinds the symbols so far are
    for _ in range(self.length):
      new: dict[int, float] = {}
      for k, p in kinds.items():
        new[k] = new.get(k, 0) + p * k / self.symbols
        new[k + 1] = new.get(k + 1, 0) + p * (1 - k / self.symbols)
      kinds = new
    return sum(p / k for k, p in kinds.items() if k)

  @property
  def state_bits(self) -> float:
    """How often each came."""
    return math.log2(math.comb(self.length + self.symbols - 1, self.symbols - 1))

  def example(self, key: jax.Array) -> Batch:
    drawn = jax.random.randint(field(key, 0), (self.length,), 0, self.symbols)
    count = jnp.zeros(self.symbols, jnp.int32).at[drawn].add(1)
    inputs = jnp.append(SYMBOL + drawn, END).astype(jnp.int32)
    targets = jnp.full(self.length + 1, IGNORE, jnp.int32)
    targets = targets.at[-1].set(SYMBOL + jnp.argmax(count).astype(jnp.int32))
    most, next_ = jax.lax.top_k(count, 2)[0]
    lead = jnp.zeros(self.length + 1, jnp.int32).at[-1].set(most - next_)
    length = jnp.int32(self.length + 1)
    return Batch(inputs, targets, targets != IGNORE, length, {"lead": lead})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """By sorting: the longest run."""
    del length
    ordered = jnp.sort(inputs[: self.length])
    run = jnp.arange(self.length) - jnp.searchsorted(ordered, ordered)
    answer = ordered[jnp.argmax(run)]
    return jnp.where(inputs == END, answer, IGNORE)
