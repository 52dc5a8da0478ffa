"""The task "N-th farthest" of "Relational recurrent neural networks" (Santoro et al. 2018, arXiv
1806.01822): which of k vectors is the n-th from vector m?

Every step shows one vector, and beside it m and n, so that all pairs must be compared before the
answer, which is due at the last step. As in the authors' generator, ranks are from the nearest on,
and rank 0 is the vector m itself; `farthest=True` counts from the other end, as the name says.
"""

import dataclasses

import jax
import jax.numpy as jnp


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
