"""Facts as tokens, `s r o .`, and questions about them, `ASK s r`, where o is due at r: what the
tasks on updates and on retention share.

Ids: 0 padding, 1 the stop, 2 ASK, then subjects, relations and objects; each relation has objects
of its own, so that a question tells what kind of answer is due.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks

STOP, ASK, FIRST = 1, 2, 3
FACT, QUESTION = 4, 3  # tokens of each


@dataclasses.dataclass(frozen=True)
class Words:
  """Numbers of subjects, of relations and of objects of each relation.

  A pair is a subject with a relation, `subject * relations + relation`.
  """

  subjects: int
  relations: int
  objects: int

  def __post_init__(self):
    checks.positive(subjects=self.subjects, relations=self.relations, objects=self.objects)

  @property
  def pairs(self) -> int:
    return self.subjects * self.relations

  @property
  def vocab(self) -> int:
    return FIRST + self.subjects + self.relations * (1 + self.objects)

  @property
  def bits(self) -> float:
    """Bits of a fact."""
    return math.log2(self.pairs) + math.log2(self.objects)

  def key(self, pair: jax.Array) -> jax.Array:
    """Ids of pairs `[...]`, `[..., 2] int32`."""
    subject, relation = pair // self.relations, pair % self.relations
    return jnp.stack([FIRST + subject, FIRST + self.subjects + relation], axis=-1)

  def value(self, pair: jax.Array, value: jax.Array) -> jax.Array:
    """Ids of the objects numbered `value` of pairs' relations."""
    first = FIRST + self.subjects + self.relations
    return first + pair % self.relations * self.objects + value

  def facts(self, pair: jax.Array, value: jax.Array) -> jax.Array:
    """Tokens of facts `[F]`, one after another, `[4 F] int32`."""
    told = [self.key(pair), self.value(pair, value)[:, None], jnp.full((len(pair), 1), STOP)]
    return jnp.concatenate(told, axis=1).reshape(-1).astype(jnp.int32)

  def questions(self, pair: jax.Array) -> jax.Array:
    """Tokens of questions `[Q]`, `[3 Q] int32`."""
    asked = jnp.concatenate([jnp.full((len(pair), 1), ASK), self.key(pair)], axis=1)
    return asked.reshape(-1).astype(jnp.int32)


def newest(told: jax.Array, asked: jax.Array) -> jax.Array:
  """What the last fact about each question's pair in the tokens `told [4 F]` said, 0 without one.

  Args:
    asked: `[3 Q]`, tokens of questions.
  """
  facts, asked = told.reshape(-1, FACT), asked.reshape(-1, QUESTION)
  same = jnp.all(facts[None, :, :2] == asked[:, None, 1:], axis=-1)  # [Q, F]
  last = jnp.max(jnp.where(same, jnp.arange(1, len(facts) + 1), 0), axis=1)
  return jnp.where(last > 0, facts[last - 1, 2], 0)
