"""The repeat copy task of the Differentiable Neural Computer's code (google-deepmind/dnc).

A start flag, n vectors of random bits, the number of repeats r; then r times the n vectors are due
in order, and an end marker. A frame's target is due at that frame. State needed: bits * n and r.
"""

import jax
import jax.numpy as jnp

from memjax.tasks.copying import Copies


def sample(
  key: jax.Array, batch: int, *, shortest: int = 1, longest: int = 2, fewest: int = 1,
  most: int = 2, bits: int = 4, norm: float = 10.0,
) -> Copies:  # fmt: skip
  """`batch` sequences of n ~ U{shortest..longest} vectors and r ~ U{fewest..most} repeats.

  Args:
    norm: r is shown as r / norm.

  Returns:
    inputs `[B, T, bits + 2]` (flag of the start, then r / norm, after the bits), targets
    `[B, T, bits + 1]` (end marker after the bits), mask `[B, T]`; T = longest (most + 1) + 3.
  """
  keys = jax.random.split(key, 3)
  n = jax.random.randint(keys[0], (batch, 1), shortest, longest + 1)
  repeats = jax.random.randint(keys[1], (batch, 1), fewest, most + 1)
  word = jax.random.bernoulli(keys[2], 0.5, (batch, longest, bits)).astype(jnp.float32)
  t = jnp.arange(longest * (most + 1) + 3)[None]
  end = n * (repeats + 1) + 2  # of all repeats
  at = jnp.where(t <= n, jnp.clip(t - 1, 0, longest - 1), (t - n - 2) % n)
  vectors = jnp.take_along_axis(word, at[:, :, None], axis=1)
  shown, due = (t >= 1) & (t <= n), (t >= n + 2) & (t < end)
  start = jnp.broadcast_to(t == 0, shown.shape).astype(jnp.float32)
  count = (t == n + 1) * repeats / norm
  marker = (t == end).astype(jnp.float32)
  inputs = [vectors * shown[:, :, None], start[:, :, None], count[:, :, None]]
  targets = [vectors * due[:, :, None], marker[:, :, None]]
  return Copies(
    inputs=jnp.concatenate(inputs, axis=-1),
    targets=jnp.concatenate(targets, axis=-1),
    mask=due | (t == end),
  )
