"""Tasks whose frames and answers are vectors of bits, as those of "Neural Turing Machines" (Graves
et al. 2014, arXiv 1410.5401).

    batch = Copy(longest=20).sample(0, TRAIN, jnp.arange(32))
    found = score_bits(logits, batch)                           # {"cost": ..., "wrong": ..., ...}

The frames in which an answer is due are empty: answers are never fed back.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from memjax.tasks.task import Batch, Task, beside, scored


class VectorTask(Task):
  """A task over vectors; a subclass defines `inputs_size` and `outputs_size` in place of `vocab`.

  `Batch.inputs` are `[B, T, inputs_size] float32`, targets `[B, T, outputs_size] float32` of 0 and
  1, and 0 where nothing is due. `oracle` gives `[T, outputs_size]`: the bits, or, where the task is
  not `certain`, the probability of 1 of each. `chance` and `floor` are shares of bits.
  """

  input_form: ClassVar[str] = "vectors"
  output_form: ClassVar[str] = "bits"

  @property
  def chance(self) -> float:
    return 0.5

  def loss(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """Nats a bit that counts, float32."""
    due = jnp.sum(batch.mask) * batch.targets.shape[-1]
    return jnp.sum(costs(logits, batch)) * math.log(2) / jnp.maximum(due, 1)

  def score(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """`score_bits`."""
    return score_bits(logits, batch)


def costs(logits: jax.Array, batch: Batch) -> jax.Array:
  """Bits that each sequence costs, `[B] float32`: cross-entropy summed over all bits that are due.

  Args:
    logits: `[B, T, outputs_size]` of a 1.
  """
  logits = logits.astype(jnp.float32)
  nats = jnp.where(batch.targets > 0.5, jax.nn.softplus(-logits), jax.nn.softplus(logits))
  mask = beside(batch.mask, nats)
  return jnp.sum(jnp.where(mask, nats, 0), axis=(1, 2)) / math.log(2)


def logits_of(chances: jax.Array) -> jax.Array:
  """The logits of probabilities; of a sure bit, that of a float32 next to it."""
  tiny = jnp.finfo(jnp.float32).eps
  chances = jnp.clip(chances, tiny, 1 - tiny)
  return jnp.log(chances) - jnp.log1p(-chances)


def score_bits(logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
  """Of logits `[B, T, outputs_size]`: `acc` of bits, `em` of whole examples, `cost` in bits a
  sequence (what the paper plots), `bits` the same a bit that is due (chance: 1), `wrong` bits a
  sequence. Float32 scalars; a logit of 0 or less says 0."""
  cost = costs(logits, batch)
  rows, width = batch.mask.shape[0], batch.targets.shape[-1]
  due = jnp.maximum(jnp.sum(batch.mask) * width, 1)
  said = (logits > 0).astype(jnp.float32)
  wrong = (said != batch.targets) & beside(batch.mask, said)
  more = {"cost": jnp.mean(cost), "bits": jnp.sum(cost) / due, "wrong": jnp.sum(wrong) / rows}
  return scored(said, batch) | more


def majority(n: int) -> float:
  """Expected share of n fair bits that are equal to the commoner one: what is right of them when
  all that is known is how many were 1."""
  whole = sum(math.comb(n, k) * max(k, n - k) for k in range(n + 1))
  return whole / 2**n / n
