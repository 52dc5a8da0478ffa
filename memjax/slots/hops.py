"""The hop loop of memory networks: a query reads keys and values several times, each time changed
by what it read.

B batch (or any leading axes, such as heads), N slots, d width of keys, e width of values.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.usage import measure_slots


def soft(scores: jax.Array, filled: jax.Array) -> jax.Array:
  """Softmax of `scores [..., N]` over the slots that are `filled`; zero where none is."""
  # A finite floor and a product: a row with no slot at all reads zero, with finite gradients.
  return jax.nn.softmax(jnp.where(filled, scores, -1e30), axis=-1) * filled


def read(u: jax.Array, keys: jax.Array, values: jax.Array, weigh: Callable, drop=None) -> tuple:
  """One hop: `p = weigh(u . keys)`, `o = sum_i p_i values_i`.

  Args:
    u: `[..., d]`.   keys: `[..., N, d]`.   values: `[..., N, e]`.   weigh: scores -> p `[..., N]`.
    drop: p -> the weights that o is read with, such as those that dropout leaves; None: p.

  Returns:
    o: `[..., e]`.   p: `[..., N]`.
  """
  p = weigh(jnp.einsum("...d,...nd->...n", u, keys))
  return jnp.einsum("...n,...nd->...d", p if drop is None else drop(p), values), p


def loop(u, memories: Sequence[tuple], weigh: Callable, update: Callable) -> tuple:
  """Reads once from each of `memories`, (keys, values), and `u = update(hop, u, o)` after each.

  Returns:
    u: after the last update.
    reads: `p [..., N]` of each hop, for `measure`; () when nobody measures.
  """
  reads = []
  for hop, (keys, values) in enumerate(memories):
    o, p = read(u, keys, values, weigh)
    reads += [p] if channel.measuring() else []
    u = update(hop, u, o)
  return u, tuple(reads)


def measure(reads: Sequence[jax.Array], asked: jax.Array | None, taken=None) -> None:
  """Measures the attention `[B, T, N]`, or `[B, T, heads, N]`, of each hop.

  Args:
    asked: `[B, T]` bool, where anything was asked; None: everywhere.
    taken: `[B, T]` int, how many of the hops were; None: all.
  """
  for hop, p in enumerate(reads):
    valid = asked
    if taken is not None:
      valid = taken > hop if asked is None else asked & (taken > hop)
    with channel.scope(f"hop{hop}"):
      measure_slots(read=p if p.ndim == 4 else p[:, :, None], valid=valid)
