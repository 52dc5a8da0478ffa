"""Dynamic N-grams, of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401).

For each sequence a table holds the chance of a 1 after each context of `context` bits, drawn from
Beta(1/2, 1/2). The first bits are fair, each later one follows the table; at every frame the next
bit is due, from the first whole context on:

    x1 x2 x3 x4 x5 x6 .. x199
                x6 x7 .. x200  due

No solver knows the bits. The best one counts what came after each context in this sequence:
P(1 | c) = (N1(c) + 1/2) / (N0(c) + N1(c) + 1), and is the oracle; a score is told in bits a
sequence above it (`excess`). The paper: contexts of 5 bits, 200 bits; longer here: 400, 1000.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks.task import Batch, field
from memjax.tasks.vectors import VectorTask, costs, logits_of, score_bits


@dataclasses.dataclass(frozen=True)
class NGrams(VectorTask):
  """See the module. One channel of input, one bit due; T = length - 1.

  Attributes:
    length: bits of a sequence.   context: bits that the next one depends on.

  Meta: `seen [T]`, how often the context of the place occurred before it.

  Raises:
    ValueError: no bit follows a whole context.
  """

  length: int = 200
  context: int = 5
  number = 13
  certain = False

  def __post_init__(self):
    checks.positive(length=self.length, context=self.context)
    if self.length <= self.context:
      raise ValueError(f"length={self.length} must exceed context={self.context}")

  @property
  def inputs_size(self) -> int:
    return 1

  @property
  def outputs_size(self) -> int:
    return 1

  @property
  def floor(self) -> float:
    """Of who counts ones whatever came before them: the share on 2000 sequences of its own."""
    return _share_of_counting(self.length, self.context)

  @property
  def state_bits(self) -> float:
    contexts = 2**self.context
    return contexts * 2 * math.log2(self.length / contexts + 1)

  def example(self, key: jax.Array) -> Batch:
    chances = jnp.sin(jnp.pi / 2 * jax.random.uniform(field(key, 0), (2**self.context,))) ** 2
    drawn = jax.random.uniform(field(key, 1), (self.length,))
    last = 2**self.context - 1

    def step(carry, u):
      code, number = carry
      chance = jnp.where(number < self.context, 0.5, chances[code])
      bit = (u < chance).astype(jnp.int32)
      return ((2 * code + bit) & last, number + 1), bit

    start = jnp.int32(0), jnp.int32(0)
    bits = jax.lax.scan(step, start, drawn)[1].astype(jnp.float32)[:, None]
    mask = jnp.arange(self.length - 1) >= self.context - 1
    inputs, targets = bits[:-1], jnp.where(mask[:, None], bits[1:], 0)
    seen = jnp.where(mask, jnp.sum(self.followed(inputs), axis=1), 0).astype(jnp.int32)
    return Batch(inputs, targets, mask, jnp.int32(self.length - 1), {"seen": seen})

  def followed(self, inputs: jax.Array) -> jax.Array:
    """How often a 0 and a 1 came after each place's context before it, `[T, 2]` of `[T, 1]`."""
    bits = inputs[:, 0].astype(jnp.int32)
    at = jnp.arange(bits.size)
    code = sum((jnp.roll(bits, i) << i for i in range(1, self.context)), start=bits)
    told = (at >= self.context - 1) & (at < bits.size - 1)  # the context is whole, a bit came after
    pair = (code[:, None] == jnp.arange(2**self.context)[None]) & told[:, None]
    came = jnp.roll(bits, -1)[:, None] == jnp.arange(2)[None]
    events = pair[:, :, None] & came[:, None]  # [T, contexts, 2]
    before = jnp.cumsum(events, axis=0) - events
    return jnp.take_along_axis(before, code[:, None, None], axis=1)[:, 0]

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    counts = self.followed(inputs).astype(jnp.float32)
    chances = (counts[:, 1] + 0.5) / (counts[:, 0] + counts[:, 1] + 1)
    due = jnp.arange(inputs.shape[0]) >= self.context - 1
    return jnp.where(due, chances, 0)[:, None]

  def closed_book(self, batch: Batch) -> Batch:
    """Without any bit."""
    return dataclasses.replace(batch, inputs=jnp.zeros_like(batch.inputs))

  def excess(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """Bits that each sequence costs above the oracle, `[B] float32`; a mean is at least 0."""
    return costs(logits, batch) - costs(logits_of(self.solve(batch)), batch)

  def score(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """`score_bits`, and the mean `excess`."""
    return score_bits(logits, batch) | {"excess": jnp.mean(self.excess(logits, batch))}


@functools.cache
def _share_of_counting(length: int, context: int, rows: int = 2000) -> float:
  """Bits that are right of one who says the one that was commoner so far in the sequence."""
  draw = np.random.default_rng(0)
  chances = draw.beta(0.5, 0.5, (rows, 2**context))
  each, last = np.arange(rows), 2**context - 1
  code, ones, right = np.zeros(rows, int), np.zeros(rows), 0
  for t in range(length):
    chance = 0.5 if t < context else chances[each, code]
    bit = draw.random(rows) < chance
    if t >= context:
      right += np.sum((ones > t / 2) == bit)
    ones, code = ones + bit, (2 * code + bit) & last
  return float(right / rows / (length - context))
