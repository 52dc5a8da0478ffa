"""The associative recall task of "Neural Turing Machines" (Graves et al. 2014, arXiv 1410.5401).

m items of a few vectors of random bits, a delimiter before each; then one of them, not the last,
between two delimiters of another channel: the item after it is due in the frames that follow.
"""

import jax
import jax.numpy as jnp

from memjax.tasks.copying import Copies


def sample(
  key: jax.Array, batch: int, *, fewest: int = 2, most: int = 6, vectors: int = 3, bits: int = 6
) -> Copies:
  """`batch` sequences of m ~ U{fewest..most} items.

  Returns:
    inputs `[B, T, bits + 2]` (delimiter of items, then of the query, after the bits), targets
    `[B, T, bits]`, mask `[B, T]`; T = (vectors + 1) most + 2 vectors + 2.

  Raises:
    ValueError: one item has none after it.
  """
  if not 2 <= fewest <= most:
    raise ValueError(f"fewest={fewest}, most={most} must satisfy 2 <= fewest <= most")
  keys, each = jax.random.split(key, 3), vectors + 1
  m = jax.random.randint(keys[0], (batch, 1), fewest, most + 1)
  asked = jax.random.randint(keys[1], (batch, 1), 0, m - 1)
  items = jax.random.bernoulli(keys[2], 0.5, (batch, most * vectors, bits)).astype(jnp.float32)
  t = jnp.arange(each * most + 2 * vectors + 2)[None]
  since = t - each * m  # frames since the query's first delimiter
  shown, query = (since < 0) & (t % each > 0), (since > 0) & (since < each)
  due = (since > each) & (since <= each + vectors)
  at = jnp.where(shown, t // each * vectors + t % each - 1, 0)
  at = jnp.where(query, asked * vectors + since - 1, at)
  at = jnp.where(due, (asked + 1) * vectors + since - each - 1, at)
  bits_at = jnp.take_along_axis(items, at[:, :, None], axis=1)
  item = ((since < 0) & (t % each == 0)).astype(jnp.float32)[:, :, None]
  border = ((since == 0) | (since == each)).astype(jnp.float32)[:, :, None]
  inputs = jnp.concatenate([bits_at * (shown | query)[:, :, None], item, border], axis=-1)
  return Copies(inputs, bits_at * due[:, :, None], due)
