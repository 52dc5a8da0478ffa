"""Positions and tokens that make a short call stand for a long text.

Everything here is a pure function of a key, for one row: `jax.vmap` gives a batch, `jax.jit` takes
it with sizes and modes static. What comes out goes to a model as `batch["positions"]`, read by
`Attention(positions="positions")`; masks are by order, so nothing else changes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MODES = ("full", "pose", "random", "sentences")


def sentence_starts(tokens: jax.Array, ends: jax.Array) -> jax.Array:
  """`[b] bool` of `tokens [b]`: does a sentence begin here, after one of the ids `ends [n]`?"""
  before = jnp.isin(tokens[:-1], ends)
  return jnp.concatenate([jnp.ones(1, bool), before])


def skip_positions(
  key: jax.Array, length: int, target: int, *, mode: str = "sentences",
  starts: jax.Array | None = None, whole: bool = True,
) -> jax.Array:  # fmt: skip
  """Rising positions below `target` for `length` tokens that stand next to each other.

  full: 0, 1, ...
  pose: one gap of 1..target - length positions after the first r tokens (PoSE, arXiv 2309.10400).
  random: a sorted uniform draw of `length` of the `target` positions.
  sentences: gaps between sentences (LongRecipe, arXiv 2409.00509). The first sentence stays at 0;
    the others are put where m sorted slots of target - length + m are, m sentences; then the first
    r tokens are put back to 0..r-1.

  r is drawn from 1..(length + 1) / 2.

  Args:
    key: JAX random key.
    length: tokens b of the row.
    target: positions T, length <= target.
    mode: one of `MODES`.
    starts: `[b] bool`, where sentences begin (`sentence_starts`); for "sentences" only.
    whole: the first r tokens are extended to the end of their sentence, so that no gap falls inside
      one; False: as the released code, which cuts that sentence.

  Returns:
    `[b] int32`.

  Raises:
    ValueError: an argument is out of range, or starts are missing or not wanted.
  """
  _check(mode, length, target, starts)
  order = jnp.arange(length, dtype=jnp.int32)
  room = target - length
  if mode == "full" or not room:
    return order
  if mode == "random":
    chosen = jax.random.choice(key, target, (length,), replace=False)
    return jnp.sort(chosen).astype(jnp.int32)
  first, gap = jax.random.split(key)
  kept = jax.random.randint(first, (), 1, (length + 1) // 2 + 1)
  if starts is None:
    return order + jnp.where(order < kept, 0, jax.random.randint(gap, (), 1, room + 1))
  sentence = jnp.cumsum(starts.at[0].set(True)) - 1
  gaps = _gaps(gap, sentence[-1] + 1, room, length).at[0].set(0)
  near = order < kept
  if whole:
    near = sentence <= sentence[kept - 1]
  return order + jnp.where(near, 0, gaps[sentence])


class Segments(NamedTuple):
  """Parts of a long text, put next to each other.

  Attributes:
    index: `[L] int32`, places in the long text: `tokens = text[index]`, and their positions.
    boundary: `[L] bool`, True where another token stands before this one than in the text.
  """

  index: jax.Array
  boundary: jax.Array


def sample_segments(
  key: jax.Array, total: int, length: int, segments: int, *, equal: bool = True,
  include_last: bool = False,
) -> Segments:  # fmt: skip
  """Draws segments of `length` tokens together from a text of `total` (SegTrain, arXiv 2310.14633).

  They keep their order and their positions, and do not overlap. With `targets = text[index + 1]`
  the loss at every token is that of the text.

  Args:
    key: JAX random key.
    total: tokens T of the long text.
    length: tokens L together.
    segments: n of them, at most `length`.
    equal: of length / n tokens each (the first ones of one more where n does not divide it);
      False: of random lengths.
    include_last: the last one ends the text, and the others come from before it.

  Raises:
    ValueError: sizes that do not fit.
  """
  for name, value, most in (("length", length, total), ("segments", segments, length)):
    if not 1 <= value <= most:
      raise ValueError(f"{name}={value} must lie in 1..{most} (total={total}, length={length})")
  cuts, places = jax.random.split(key)
  if equal:
    number = jnp.arange(segments)
    border = number * (length // segments) + jnp.minimum(number, length % segments)
  else:
    inner = jax.random.choice(cuts, length - 1, (segments - 1,), replace=False) + 1
    border = jnp.concatenate([jnp.zeros(1, inner.dtype), jnp.sort(inner)])
  starts = jnp.zeros(length, bool).at[border].set(True)
  gaps = _gaps(places, segments - include_last, total - length, segments)
  if include_last:
    gaps = gaps.at[-1].set(total - length)
  order = jnp.arange(length, dtype=jnp.int32)
  index = order + gaps[jnp.cumsum(starts) - 1]
  boundary = jnp.concatenate([jnp.zeros(1, bool), index[1:] != index[:-1] + 1])
  return Segments(index, boundary)


def interpolate_positions(table: jax.Array, length: int, *, mode: str = "linear") -> jax.Array:
  """A table of absolute positions `[L, D]`, made longer: `[length, D]`, before training goes on.

  linear: new[p] = table at p (L - 1) / (length - 1), between its neighbours by their distance.
  repeat: new[p] = table[p mod L].
  """
  size = table.shape[0]
  if mode not in ("linear", "repeat"):
    raise ValueError(f"mode={mode!r} must be 'linear' or 'repeat'")
  if length < size:
    raise ValueError(f"length={length} must be at least the table's {size} positions")
  order = jnp.arange(length)
  if mode == "repeat" or size == 1:
    return table[order % size]
  place = order * ((size - 1) / max(length - 1, 1))
  low = jnp.minimum(place.astype(jnp.int32), size - 2)
  share = (place - low).astype(table.dtype)[:, None]
  return (1 - share) * table[low] + share * table[low + 1]


def _gaps(key, count, room: int, most: int) -> jax.Array:
  """The first `count` entries of `[most] int32` are a uniform draw of so many sorted numbers in
  0..room with repetition, as positions skipped before each of `count` (may be traced) parts.

  Slots are drawn from room + count without repetition; slot j minus j is the gap before part j."""
  slots = room + most
  noise = jax.random.uniform(key, (slots,))
  noise = jnp.where(jnp.arange(slots) < room + count, noise, 2.0)
  order = jnp.arange(most)
  chosen = jnp.sort(jnp.where(order < count, jnp.argsort(noise)[:most], slots))
  return (chosen - order).astype(jnp.int32)


def _check(mode, length, target, starts):
  if mode not in MODES:
    raise ValueError(f"mode={mode!r} is not one of {', '.join(MODES)}")
  if not 1 <= length <= target:
    raise ValueError(f"length={length} must lie in 1..target={target}")
  if (mode == "sentences") != (starts is not None):
    needs = "needs starts, such as sentence_starts(tokens, ends)"
    raise ValueError(f"mode={mode!r} {needs if starts is None else 'takes no starts'}")
  if starts is not None and (starts.shape != (length,) or starts.dtype != jnp.bool_):
    raise ValueError(f"starts is {starts.dtype}{list(starts.shape)}; it must be bool[{length}]")
