"""Learning classes from a stream of labelled examples (the competency "test-time learning" of
"Evaluating Memory in LLM Agents via Incremental Multi-Turn Interactions", Hu, Wang and McAuley
2025, arXiv 2507.05257).

C classes, each a pattern of n words, are shown in rounds of all classes in random order; in a shot
`noise` of its words are any others. Then shots without a label, whose label is due at the arrow:

    x x x x > y1  x x x x > y7 ..  x x x x >  x x x x > ..

Patterns and labels are drawn for each example, so that nothing can be learned but from the stream.
Patterns of two classes differ in every word, and n > 4 noise: the nearest shot is always of the
right class.

Ids: 0 padding, 1 the arrow, labels, words. Difference: patterns of ids stand for the authors'
sentences with numbered labels.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.stream import Streamed
from memjax.tasks.task import IGNORE, field

ARROW, LABEL = 1, 2


@dataclasses.dataclass(frozen=True)
class FewShots(Streamed):
  """See the module.

  Attributes:
    classes: C.   shots: rounds, so many of each class.   queries: shots without label.
    size: words n of a pattern.   noise: of them are replaced.   words: that there are.

  Meta: `query [T]`, number of the question.

  Raises:
    ValueError: the noise is too much, or there are too few words.
  """

  classes: int = 16
  shots: int = 8
  queries: int = 8
  size: int = 9
  noise: int = 2
  words: int = 1024
  number = 77

  def __post_init__(self):
    checks.positive(classes=self.classes, shots=self.shots, queries=self.queries, size=self.size)
    if not 0 <= 4 * self.noise < self.size:
      raise ValueError(f"noise={self.noise} must be below a quarter of size={self.size}")
    if self.words < max(2, self.classes):
      raise ValueError(
        f"words={self.words} must be at least classes={self.classes}: patterns differ in every word"
      )

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return LABEL + self.classes + self.words

  @property
  def pieces(self) -> int:
    return self.classes * self.shots

  @property
  def piece(self) -> int:
    return self.size + 2

  @property
  def asked(self) -> int:
    return self.queries * (self.size + 1)

  @property
  def chance(self) -> float:
    return 1 / self.classes

  @property
  def floor(self) -> float:
    return 1 / self.classes

  @property
  def state_bits(self) -> float:
    patterns = self.classes * self.size * math.log2(self.words)
    return patterns + math.lgamma(self.classes + 1) / math.log(2)

  def plan(self, key: jax.Array) -> Any:
    pattern = lambda key: draw.distinct(key, self.words, self.classes)  # noqa: E731
    patterns = jax.vmap(pattern)(jax.random.split(field(key, 0), self.size)).T  # [C, n]
    labels = LABEL + draw.distinct(field(key, 1), self.classes, self.classes)
    return key, patterns, labels

  def _shown(self, key: jax.Array, patterns: jax.Array, kind: jax.Array) -> jax.Array:
    """A pattern `[n]` with its noise, as ids."""
    wrong = draw.distinct(field(key, 0), self.size, self.noise)
    others = jax.random.randint(field(key, 1), (self.noise,), 0, self.words)
    return LABEL + self.classes + patterns[kind].at[wrong].set(others)

  def part(self, plan: Any, number: jax.Array) -> jax.Array:
    key, patterns, labels = plan
    turn, place = number // self.classes, number % self.classes
    kinds = draw.distinct(jax.random.fold_in(field(key, 2), turn), self.classes, self.classes)
    kind = kinds[place]
    shown = self._shown(jax.random.fold_in(field(key, 3), number), patterns, kind)
    return jnp.concatenate([shown, jnp.stack([jnp.int32(ARROW), labels[kind]])])

  def questions(self, plan: Any):
    key, patterns, labels = plan
    kinds = jax.random.randint(field(key, 4), (self.queries,), 0, self.classes)
    keys = jax.random.split(field(key, 5), self.queries)
    shown = jax.vmap(lambda key, kind: self._shown(key, patterns, kind))(keys, kinds)
    inputs = jnp.pad(shown, ((0, 0), (0, 1)), constant_values=ARROW)
    targets = jnp.full(inputs.shape, IGNORE, jnp.int32).at[:, -1].set(labels[kinds])
    query = jnp.broadcast_to(jnp.arange(self.queries)[:, None], inputs.shape)
    return inputs.reshape(-1), targets.reshape(-1), {"query": query.reshape(-1)}

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    told = inputs[: self.told].reshape(-1, self.piece)
    asked = inputs[self.told :].reshape(self.queries, -1)
    same = asked[:, None, : self.size] == told[None, :, : self.size]
    nearest = jnp.argmax(jnp.sum(same, axis=-1), axis=1)
    answers = jnp.full(asked.shape, IGNORE, jnp.int32).at[:, -1].set(told[nearest, -1])
    return jnp.concatenate([jnp.full(self.told, IGNORE, jnp.int32), answers.reshape(-1)])
