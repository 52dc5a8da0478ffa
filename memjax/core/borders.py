"""What memories over segments share: calls of whole segments or of a part of one, resets at
borders, rows that were misused, and what is due once a segment.
"""

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.sequence_sharding import SequenceSharding, cumsum


def whole(length: int, segment: int) -> bool:
  """Whether a call of T = `length` tokens holds whole segments; False: a part of one.

  Raises:
    ValueError: neither.
  """
  if length % segment == 0:
    return True
  if length < segment:
    return False
  near = length // segment * segment
  raise ValueError(
    f"x has T={length} tokens; with segment={segment} a call takes whole segments (T={near} or "
    f"{near + segment}) or a part of one (T < {segment}): pad with valid=False, or call twice"
  )


def resets(reset, valid, cut: SequenceSharding | None = None):
  """`[...]`: a reset stands before the first valid token; `[..., T]`: one has come too late."""
  if reset is None:
    return None, None
  valid = jnp.ones(reset.shape, jnp.bool_) if valid is None else valid
  before = cumsum(valid.astype(jnp.int32), cut) > valid
  late = cumsum((reset & before).astype(jnp.int32), cut) > 0
  return jnp.any(reset & ~before, axis=-1), late


def poison(y, broken, valid):
  """`y [B, T, D]` with NaN at the valid tokens of `broken [B, T or 1]`."""
  broken = jnp.broadcast_to(broken, y.shape[:2])
  return jnp.where((broken if valid is None else broken & valid)[..., None], jnp.nan, y)


def if_any(rows, fn, tree):
  """`fn(tree)` if a row is due, else `tree`: it costs once a segment, not once a token."""
  with channel.muted():
    return jax.lax.cond(jnp.any(rows), fn, lambda tree: tree, tree)
