"""The task "N-th farthest" of "Relational recurrent neural networks" (Santoro et al. 2018, arXiv
1806.01822): which of k vectors is the n-th from vector m?

Every step shows one vector, and beside it m and n, so that all pairs must be compared before the
answer, which is due at the last step. In the authors' generator ranks are from the nearest on, and
rank 0 is the vector m itself, so that one question in k is answered by m.

`NthFarthest` is the generated task, by default as the name says: rank 1 is the vector farthest from
m. `sample` draws from a key, in the authors' order, or with `farthest=True` from the other end.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field


@dataclasses.dataclass(frozen=True)
class NthFarthest(Task):
  """k steps, one for each vector in random order: the vector, then one-hot its id, m and n; the id
  of the n-th from m is due at the last. `Batch.inputs` are `[B, k, features + 3 ids] float32`.

  The paper's figures are for 8 vectors of 16 numbers; its released flags say 4 of 4.
  Difference: with more `ids` than vectors those of an example are drawn, so that one model reads
  any number of vectors up to `ids`, also more than it was trained on.

  Attributes:
    objects: k.   features: numbers of a vector, in U(-1, 1).
    order: "farthest", n in 1..k - 1 from the farthest on, so that m is never the answer; or "code",
      n in 0..k - 1 from the nearest on, which is m.
    ids: of objects; 0: k.

  Meta: `rank [T]`, n at the last step.

  Raises:
    ValueError: fewer ids than objects.
  """

  objects: int = 8
  features: int = 16
  order: str = "farthest"
  ids: int = 0
  number = 54
  input_form = "vectors"

  def __post_init__(self):
    checks.positive(objects=self.objects, features=self.features)
    checks.one_of("order", self.order, ("farthest", "code"))
    if self.objects < 3:
      raise ValueError(f"objects={self.objects} must be at least 3: two to choose from, and m")
    if self.ids and self.ids < self.objects:
      raise ValueError(f"ids={self.ids} must be 0 or at least objects={self.objects}")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return self.ids or self.objects

  @property
  def inputs_size(self) -> int:
    return self.features + 3 * self.vocab

  @property
  def chance(self) -> float:
    """Of one of the objects shown, without m where it cannot be the answer."""
    return 1 / (self.objects - (self.order == "farthest"))

  @property
  def floor(self) -> float:
    """Of a reader that ranks vectors by their length, whatever m is; measured."""
    shown = np.random.default_rng(0).uniform(-1, 1, (4000, self.objects, self.features))
    sign = -1 if self.order == "farthest" else 1
    true = np.argsort(sign * np.linalg.norm(shown - shown[:, :1], axis=2), axis=1)
    lengths = np.linalg.norm(shown, axis=2)
    lengths[:, 0] = -1  # m itself is known to be the last, or the first
    right = true == np.argsort(sign * lengths, axis=1)
    return float(np.mean(right[:, :-1] if self.order == "farthest" else right))

  @property
  def state_bits(self) -> float:
    """With 6 bits a number, which nearly always tell the ranks."""
    return 6 * self.objects * self.features + math.log2(self.objects)

  def example(self, key: jax.Array) -> Batch:
    k, size = self.objects, self.vocab
    vectors = jax.random.uniform(field(key, 0), (k, self.features), minval=-1, maxval=1)
    middle = jax.random.randint(field(key, 1), (), 0, k)
    far = self.order == "farthest"
    rank = jax.random.randint(field(key, 2), (), int(far), k)
    distance = jnp.sum(jnp.square(vectors - vectors[middle][None]), axis=1)
    distance = jnp.where(jnp.arange(k) == middle, -1.0, distance)  # m is the nearest, come what may
    order = jnp.argsort(-distance if far else distance)
    answer = order[rank - 1 if far else rank]

    ids = draw.distinct(field(key, 3), size, k)  # in the order of steps: vector i has ids[i]
    parts = [jax.nn.one_hot(i, size) for i in (ids, ids[middle][None], rank[None])]
    shown = [vectors, *(jnp.broadcast_to(part, (k, size)) for part in parts)]
    last = jnp.arange(k) == k - 1
    targets = jnp.where(last, ids[answer], IGNORE).astype(jnp.int32)
    meta = {"rank": jnp.where(last, rank, 0)}
    return Batch(jnp.concatenate(shown, axis=1), targets, last, jnp.int32(k), meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """Counts for each vector how many are farther (nearer) from m."""
    del length
    size = self.vocab
    cuts = [self.features, self.features + size, self.features + 2 * size]
    vectors, own, middle, rank = jnp.split(inputs, cuts, axis=1)
    m = jnp.argmax(jnp.sum(own * middle, axis=1))
    distance = jnp.linalg.norm(vectors - vectors[m][None], axis=1)
    before = distance[None] > distance[:, None]
    before = before if self.order == "farthest" else before.T
    place = jnp.sum(before, axis=1) + (self.order == "farthest")
    hit = jnp.argmax(place == jnp.argmax(rank[0]))
    targets = jnp.full(self.objects, IGNORE, jnp.int32)
    return targets.at[-1].set(jnp.argmax(own[hit]).astype(jnp.int32))

  def closed_book(self, batch: Batch) -> Batch:
    """Without the vectors."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, :, : self.features].set(0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Questions:
  """Inputs `[B, k, d + 3 k]`: vector, its id, m and n, one-hot; answers `[B] int32`, an id."""

  inputs: jax.Array
  answer: jax.Array


def sample(
  key: jax.Array, batch: int, *, objects: int = 8, features: int = 16, farthest: bool = False
) -> Questions:
  """`batch` questions about k vectors of d numbers in U(-1, 1), shown in random order."""
  keys = jax.random.split(key, 4)
  vectors = jax.random.uniform(keys[0], (batch, objects, features), minval=-1, maxval=1)
  reference = jax.random.randint(keys[1], (batch,), 0, objects)
  rank = jax.random.randint(keys[2], (batch,), 0, objects)
  order = jnp.argsort(jax.random.uniform(keys[3], (batch, objects)), axis=1)  # id shown at a step

  middle = jnp.take_along_axis(vectors, reference[:, None, None], axis=1)
  distance = jnp.sum(jnp.square(vectors - middle), axis=-1)
  ranked = jnp.argsort(-distance if farthest else distance, axis=1)
  answer = jnp.take_along_axis(ranked, rank[:, None], axis=1)[:, 0]

  shown = jnp.take_along_axis(vectors, order[:, :, None], axis=1)
  ids = jax.nn.one_hot(order, objects)
  asked = [jax.nn.one_hot(a, objects)[:, None] for a in (reference, rank)]
  asked = [jnp.broadcast_to(a, ids.shape) for a in asked]
  return Questions(jnp.concatenate([shown, ids, *asked], axis=-1), answer.astype(jnp.int32))
