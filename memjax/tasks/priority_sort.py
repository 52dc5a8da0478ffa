"""The priority sort task of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401).

n vectors of random bits, each with a priority on a channel of its own, a delimiter, then the most
urgent of them are due, the highest priority first. State needed: due (bits + log2 due).

    x1 x2 .. xn | .  .. .
    u1 u2 .. un   x7 .. x3   due, if u7 is the highest

The paper: 20 vectors of 8 bits, 16 due; longer here: 30 and 24, 40 and 32.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.copying import Copies
from memjax.tasks.task import Batch, field
from memjax.tasks.vectors import VectorTask, majority

STEPS = 2**23  # priorities that there are


@dataclasses.dataclass(frozen=True)
class PrioritySort(VectorTask):
  """See the module. Channels: the bits, the priority, the delimiter; T = vectors + 1 + due.

  Attributes:
    vectors: how many.   due: so many are sorted out.   bits: of a vector.

  Meta: `rank [T]` of the vector that is due, from 0.
  Difference: priorities lie evenly on a grid in (-1, 1) without repeats, so that none are equal;
  of 20 float32 draws two are in one of 40,000 sequences.

  Raises:
    ValueError: more are due than there are.
  """

  vectors: int = 20
  due: int = 16
  bits: int = 8
  number = 14

  def __post_init__(self):
    checks.positive(vectors=self.vectors, due=self.due, bits=self.bits)
    _fits(self.due, self.vectors)

  @property
  def inputs_size(self) -> int:
    return self.bits + 2

  @property
  def outputs_size(self) -> int:
    return self.bits

  @property
  def floor(self) -> float:
    """Of who knows which vectors are due, not their order, and says the commoner bit."""
    return majority(self.due)

  @property
  def state_bits(self) -> float:
    return self.due * (self.bits + math.log2(self.due))

  def example(self, key: jax.Array) -> Batch:
    words = draw.bits(field(key, 0), self.vectors, self.bits)
    steps = draw.distinct(field(key, 1), STEPS, self.vectors)
    priority = (2.0 * steps + 1) / STEPS - 1
    made = _layout(words, priority, self.due)
    after = jnp.arange(self.vectors + 1 + self.due) - self.vectors - 1
    length = jnp.int32(self.vectors + 1 + self.due)
    meta = {"rank": jnp.maximum(after, 0)}
    return Batch(made.inputs, made.targets, made.mask, length, meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    words, priority = inputs[: self.vectors, : self.bits], inputs[: self.vectors, self.bits]
    rank = jnp.sum(priority[None] > priority[:, None], axis=1)  # how many go before it
    start = self.vectors + 1
    room = jnp.zeros((start + self.due, self.bits))
    return room.at[start + rank].set(words, mode="drop")


def sample(
  key: jax.Array, batch: int, *, vectors: int = 20, due: int = 16, bits: int = 8
) -> Copies:  # fmt: skip
  """`batch` sequences with priorities u ~ U(-1, 1).

  Returns:
    inputs `[B, T, bits + 2]` (priority, then delimiter, after the bits), targets `[B, T, bits]`,
    mask `[B, T]`; T = vectors + 1 + due.

  Raises:
    ValueError: more are due than there are.
  """
  _fits(due, vectors)
  key_bits, key_order = jax.random.split(key)
  words = jax.random.bernoulli(key_bits, 0.5, (batch, vectors, bits)).astype(jnp.float32)
  priority = jax.random.uniform(key_order, (batch, vectors), minval=-1.0)
  return jax.vmap(lambda words, priority: _layout(words, priority, due))(words, priority)


def _layout(words: jax.Array, priority: jax.Array, due: int) -> Copies:
  """One sequence of `words [n, bits]` with `priority [n]`."""
  n = words.shape[0]
  ranked = words[jnp.argsort(-priority)[:due]]
  t = jnp.arange(n + 1 + due)
  shown = jnp.pad(jnp.column_stack([words, priority]), ((0, due + 1), (0, 0)))
  targets = jnp.pad(ranked, ((n + 1, 0), (0, 0)))
  return Copies(jnp.column_stack([shown, (t == n).astype(jnp.float32)]), targets, t > n)


def _fits(due: int, vectors: int):
  if not 1 <= due <= vectors:
    raise ValueError(f"due={due} must lie in 1..vectors={vectors}")
