"""Contexts to inject into a memory, each with a question about one of its facts, as the protocols
of `tasks.retention` need them (after "MEMORYLLM", Wang et al. 2024, arXiv 2402.04624).

    s r o .  s r o . ..  ASK s r        due at the last r: the o of that fact

The contexts of a seed and split are told apart: of subjects * relations pairs of subject and
relation each takes `facts` of its own, until they are used up and start again. So the questions of
some are unrelated to all the others, as those of the paper's samples are to the texts that it
injects after them. Difference: facts as ids, where the paper takes SQuAD's and Natural Questions'
texts and questions.
"""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field
from memjax.tasks.triples import FACT, QUESTION, Words, newest


@dataclasses.dataclass(frozen=True)
class FactContexts(Task):
  """See the module.

  Attributes:
    facts: of a context, each of 4 tokens; 128 fill the paper's 512.
    subjects, relations: their numbers.   objects: of each relation.

  Meta: `fact [B]`, which one of the context is asked.

  Raises:
    ValueError: a context needs more pairs of subject and relation than there are.
  """

  facts: int = 16
  subjects: int = 4096
  relations: int = 16
  objects: int = 64
  number = 57

  def __post_init__(self):
    checks.positive(facts=self.facts)
    if self.contexts < 1:
      raise ValueError(f"facts={self.facts} must not exceed {self.words.pairs} pairs")

  @property
  def words(self) -> Words:
    return Words(self.subjects, self.relations, self.objects)

  @property
  def contexts(self) -> int:
    """So many examples, from 0 on, share no pair of subject and relation."""
    return self.words.pairs // self.facts

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return self.words.vocab

  @property
  def told(self) -> int:
    """Tokens of the context; the question follows."""
    return FACT * self.facts

  @property
  def chance(self) -> float:
    return 1 / self.objects

  @property
  def floor(self) -> float:
    """Of the last object of the asked kind, whose subject is not known."""
    none = (1 - 1 / self.relations) ** self.facts
    return (1 - none) * self.relations / self.facts

  @property
  def state_bits(self) -> float:
    return self.facts * self.words.bits

  def sample(self, seed: int, split: int, index: jax.Array) -> Batch:
    stream = self.stream(seed, split)
    return jax.vmap(lambda i: self._context(stream, i))(jnp.asarray(index))

  def example(self, key: jax.Array) -> Batch:
    raise NotImplementedError("contexts are told apart by their numbers: use sample")

  def _context(self, stream: jax.Array, i: jax.Array) -> Batch:
    words, own = self.words, jax.random.fold_in(stream, i)
    number = (i % self.contexts) * self.facts + jnp.arange(self.facts)
    # The order of all pairs; its key is the stream's last index, which no example has.
    pair = draw.permuted(jax.random.fold_in(stream, 2**31 - 1), words.pairs, number)
    value = jax.random.randint(field(own, 1), (self.facts,), 0, self.objects)
    asked = jax.random.randint(field(own, 2), (1,), 0, self.facts)
    inputs = jnp.concatenate([words.facts(pair, value), words.questions(pair[asked])])
    due = words.value(pair[asked], value[asked])
    targets = jnp.full(len(inputs), IGNORE, jnp.int32).at[-1:].set(due)
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(len(inputs)), {"fact": asked[0]})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    due = newest(inputs[: self.told], inputs[self.told :])
    return jnp.concatenate([jnp.full(self.told + QUESTION - 1, IGNORE), due])

  def closed_book(self, batch: Batch) -> Batch:
    """The question without the context."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, : self.told].set(PAD))
