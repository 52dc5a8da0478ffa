"""A store of the last N items of a row, most recent first, for memories that answer questions.

B batch, T items in a call, N slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memjax.slots.bags import NIL

BLOCK = 64  # questions answered at once in a call: bounds the memory that a long call takes


class Seen(NamedTuple):
  """What is in the slots before each item of a call and after the last.

  Attributes:
    window: `[B, T + 1, N]`, places in `past` of the stored items, most recent first.
    count: `[B, T + 1]`, how many of them there are.
  """

  window: jax.Array
  count: jax.Array


def past(slots: jax.Array, items: jax.Array) -> jax.Array:
  """`[B, N + T, ...]`: the slots `[B, N, ...]`, oldest first, then the items `[B, T, ...]`."""
  return jnp.concatenate([slots[:, ::-1], items], axis=1)


def see(count: jax.Array, slots: int, stored: jax.Array, reset: jax.Array | None) -> Seen:
  """What each item sees of `past`.

  Args:
    count: `[B]` filled slots of `slots`.
    stored: `[B, T]`, which items are stored.
    reset: `[B, T]`, before which items the row is emptied.
  """
  batch = stored.shape[0]
  before = jnp.arange(slots)[::-1].reshape(1, -1) < count[:, None]
  flags = jnp.concatenate([before, stored], axis=1)
  total = jnp.pad(jnp.cumsum(flags, axis=1), ((0, 0), (1, 0)))  # how many were stored before
  places = jnp.broadcast_to(jnp.arange(flags.shape[1]).reshape(1, -1), flags.shape)
  target = jnp.where(flags, total[:, :-1], flags.shape[1])
  rows = jnp.arange(batch)[:, None]
  order = jnp.zeros_like(places).at[rows, target].set(places, mode="drop")
  upto = total[:, slots:]
  forgotten = jnp.zeros_like(upto)
  if reset is not None:
    at_reset = jnp.where(reset, upto[:, :-1], 0)
    at_reset = jax.lax.cummax(at_reset, axis=1)
    forgotten = jnp.concatenate([at_reset, at_reset[:, -1:]], axis=1)
  count = jnp.minimum(upto - forgotten, slots)
  back = upto[:, :, None] - 1 - jnp.arange(slots).reshape(1, 1, -1)
  return Seen(jnp.take_along_axis(order[:, None], jnp.maximum(back, 0), axis=2), count)


def take(a: jax.Array, window: jax.Array) -> jax.Array:
  """Rows of `a [B, P, ...]` at `window [B, N]`."""
  return jnp.take_along_axis(a, window.reshape(window.shape + (1,) * (a.ndim - 2)), axis=1)


def keep(past: jax.Array, seen: Seen) -> jax.Array:
  """The slots `[B, N, ...]` after the last item; the empty ones hold NIL."""
  filled = is_filled(seen.count[:, -1], seen.window.shape[2])
  kept = take(past, seen.window[:, -1])
  return jnp.where(filled.reshape(filled.shape + (1,) * (past.ndim - 2)), kept, NIL)


def is_filled(count: jax.Array, slots: int) -> jax.Array:
  """Which slots are filled, `[B, N]`, where `count [B]` are."""
  return jnp.arange(slots).reshape(1, -1) < count[:, None]


def ask(answer, *inputs):
  """`answer` of each item: maps over axis 1 of `inputs`, `BLOCK` items at a time."""
  inputs = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), inputs)
  length = jax.tree.leaves(inputs)[0].shape[0]
  found = jax.lax.map(lambda args: answer(*args), inputs, batch_size=min(BLOCK, length))
  return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)


def skipped(vocab: int, ignored: Sequence[int]) -> jax.Array:
  """Which ids `[vocab]` are ignored as shared words: those named, and padding."""
  outside = [i for i in ignored if not 0 <= i < vocab]
  if outside:
    raise ValueError(f"ignored has ids {outside}; they must lie in 0..{vocab - 1}")
  return jnp.zeros(vocab, bool).at[jnp.asarray([NIL, *ignored])].set(True)


def shares(question: jax.Array, keys: jax.Array, skipped: jax.Array) -> jax.Array:
  """Which of `keys [B, N, K]` share a word with the question `[B, J]`: `[B, N]`.

  Args:
    skipped: `[vocab]` bool, ids that do not count.
  """
  counts = ~jnp.take(skipped, question, mode="fill", fill_value=True)
  same = (keys[..., None] == question[:, None, None]) & counts[:, None, None]
  return jnp.any(same, axis=(2, 3))
