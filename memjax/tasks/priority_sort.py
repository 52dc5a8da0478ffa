"""The priority sort task of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401).

n vectors of random bits, each with a priority on a channel of its own, a delimiter, then the most
urgent of them are due, the highest priority first. State needed: due (bits + log2 due).
"""

import jax
import jax.numpy as jnp

from memjax.tasks.copying import Copies


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
  if not 1 <= due <= vectors:
    raise ValueError(f"due={due} must lie in 1..vectors={vectors}")
  key_bits, key_order = jax.random.split(key)
  words = jax.random.bernoulli(key_bits, 0.5, (batch, vectors, bits)).astype(jnp.float32)
  priority = jax.random.uniform(key_order, (batch, vectors), minval=-1.0)
  order = jnp.argsort(-priority, axis=1)[:, :due]
  ranked = jnp.take_along_axis(words, order[:, :, None], axis=1)
  after = ((0, 0), (0, due + 1), (0, 0))
  shown = jnp.pad(jnp.concatenate([words, priority[:, :, None]], axis=-1), after)
  delimiter = jnp.zeros((batch, vectors + 1 + due, 1)).at[:, vectors].set(1)
  mask = jnp.broadcast_to(jnp.arange(vectors + 1 + due) > vectors, (batch, vectors + 1 + due))
  targets = jnp.pad(ranked, ((0, 0), (vectors + 1, 0), (0, 0)))
  return Copies(jnp.concatenate([shown, delimiter], axis=-1), targets, mask)
