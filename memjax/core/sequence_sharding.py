"""How tokens `[B, T, ...]` lie on a mesh, and what memories need of it where time is cut.

The devices that cut time hold neighbouring pieces of equal length, in order. What crosses the
borders of the pieces is written out: sums that run over tokens, and blocks put around them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core.table_sharding import Names, divide, part, ways

METHODS = ("ring", "all_to_all")


@dataclasses.dataclass(frozen=True)
class SequenceSharding:
  """How tokens and heads lie on a mesh; hashable, so a static field of a module.

  Attributes:
    mesh: the devices; None: one device, and nothing is cut.
    batch, time: mesh axes that cut tokens `[B, T, ...]`.
    heads: mesh axes that cut the heads of attention.
    method: how attention meets the keys of other pieces: "ring" passes keys and values around;
      "all_to_all" exchanges pieces of time for heads and back (arXiv 2309.14509).
    gather_time: a memory that goes through the tokens one after another gets all of them on every
      device, instead of being refused.
  """

  mesh: Mesh | None
  batch: Names = ()
  time: Names = ()
  heads: Names = ()
  method: str = "ring"
  gather_time: bool = False

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f"method={self.method!r} is not one of {', '.join(map(repr, METHODS))}")

  @property
  def pieces(self) -> int:
    """Pieces that time is cut into."""
    return ways(self.mesh, self.time)

  def divide(self, **sizes: tuple[int, Names]) -> None:
    """Raises ValueError unless every size is divisible by what its mesh axes cut it into."""
    divide(self.mesh, **sizes)

  def token_order(self, length: int, segment: int) -> np.ndarray:
    """`[T] int`: a memory over segments of g tokens takes `x[:, order]`, and returns y so.

    A device then holds a piece of every segment; the same for targets, flags and context. With one
    segment, or time whole, it is 0, 1, 2, ...
    """
    order = np.arange(length).reshape(-1, self.pieces, segment // self.pieces)
    return order.swapaxes(0, 1).reshape(-1)

  def spec(self, *last) -> PartitionSpec:
    """Of tokens `[B, T, ...]`."""
    return PartitionSpec(part(self.batch), part(self.time), *last)

  def put(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x`, there from here on; itself without a mesh."""
    if self.mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

  def map(self, fn: Callable, into, out) -> Callable:
    """`shard_map` over all mesh axes; `fn` gets and returns one device's pieces."""
    if self.mesh is None:
      return fn
    return jax.shard_map(fn, mesh=self.mesh, in_specs=into, out_specs=out, check_vma=False)

  # ---- inside of `map`

  def shift(self, tree, by: int = 1):
    """Arrays from the piece `by` places before this one; the first follows the last."""
    n = self.pieces
    move = [(i, (i + by) % n) for i in range(n)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, self.time, move), tree)

  def piece(self) -> jax.Array:
    """Which piece of time this device holds."""
    return jax.lax.axis_index(self.time) if self.time else jnp.zeros((), jnp.int32)


# ---- sums over tokens


def cumsum(x: jax.Array, sharding: SequenceSharding | None) -> jax.Array:
  """Sums `[B, ..., T]` of numbers >= 0 over the tokens up to each."""
  return _running(lambda a: jnp.cumsum(a, axis=-1), jnp.add, jnp.sum, x, sharding)


def cummax(x: jax.Array, sharding: SequenceSharding | None) -> jax.Array:
  """The largest `[B, ..., T]` of numbers >= 0 among the tokens up to each."""
  run = lambda a: jax.lax.cummax(a, axis=a.ndim - 1)  # noqa: E731
  return _running(run, jnp.maximum, jnp.max, x, sharding)


def _running(run, join, merge, x, sharding: SequenceSharding | None):
  """Of the pieces before its own a device needs the last number only."""
  if sharding is None or not sharding.time:
    return run(x)

  def local(x):
    own = run(x)
    lasts = jax.lax.all_gather(own[..., -1:], sharding.time)  # [pieces, b, ..., 1]
    before = (jnp.arange(len(lasts)) < sharding.piece()).reshape(-1, *[1] * own.ndim)
    return join(own, merge(jnp.where(before, lasts, 0), axis=0))

  spec = PartitionSpec(part(sharding.batch), *[None] * (x.ndim - 2), part(sharding.time))
  return sharding.map(local, spec, spec)(x)


# ---- segments: `[B, T]` as `[B, T / g, g]`, g cut, and blocks put around a segment


def fold(x: jax.Array, segment: int, sharding: SequenceSharding | None) -> jax.Array:
  """`[B, T, ...]` as `[B, T / g, g, ...]` with segments of g tokens.

  Where time is cut, a device must hold its piece of every segment, not one piece of all tokens: the
  tokens come in the order of `sharding.token_order`, so that nothing moves.
  """
  count = x.shape[1] // segment
  if sharding is None or not sharding.time:
    return x.reshape(x.shape[0], count, segment, *x.shape[2:])
  pieces = sharding.pieces
  x = x.reshape(x.shape[0], pieces, count, segment // pieces, *x.shape[2:])
  x = jnp.swapaxes(_at(x, sharding, 1), 1, 2)
  return _at(x.reshape(x.shape[0], count, segment, *x.shape[4:]), sharding, 2)


def arrange(tree, segment: int, sharding: SequenceSharding | None):
  """Arrays `[B, T]` as they come, in the order of `token_order`: for ids and flags, which are small
  enough to be on every device that has their rows for a moment."""
  if sharding is None or not sharding.time:
    return tree
  pieces = sharding.pieces

  def move(a):
    if a.shape[1] % segment or segment % pieces:  # which the model refuses
      return a
    a = constrain(a, sharding, whole=True)
    parts = a.reshape(a.shape[0], -1, pieces, segment // pieces).swapaxes(1, 2)
    return constrain(parts.reshape(a.shape), sharding)

  return jax.tree.map(move, tree)


def unfold(x: jax.Array, sharding: SequenceSharding | None) -> jax.Array:
  """The reverse of `fold`."""
  batch, count, segment, *rest = x.shape
  if sharding is None or not sharding.time:
    return x.reshape(batch, count * segment, *rest)
  pieces = sharding.pieces
  x = x.reshape(batch, count, pieces, segment // pieces, *rest)
  x = jnp.swapaxes(_at(x, sharding, 2), 1, 2)
  return constrain(x.reshape(batch, count * segment, *rest), sharding)


def _at(x, sharding: SequenceSharding, axis: int):
  """`x` with time on `axis`."""
  spec = PartitionSpec(part(sharding.batch), *[None] * (axis - 1), part(sharding.time))
  return sharding.put(x, spec)


def frame(before, x, after, sharding: SequenceSharding | None) -> jax.Array:
  """`[before, x, after]` along time: `[B, g, ...]` between two blocks `[B, M, ...]`.

  Where time is cut, over n devices that all hold the blocks: n divides g and 2 M, and M <= g / n,
  so that a device needs M tokens of either neighbour, not all.
  """
  size = before.shape[1]
  if sharding is None or not sharding.time or not size:
    return jnp.concatenate([before, x, after], axis=1)
  last, more = sharding.pieces - 1, 2 * size // sharding.pieces

  def local(before, x, after):
    piece, near = sharding.piece(), _neighbours(sharding, x, size)
    left = jnp.where(piece == 0, before, near[0])
    right = jnp.where(piece == last, after, near[1])
    wide = jnp.concatenate([left, x, right], axis=1)
    return jax.lax.dynamic_slice_in_dim(wide, more * piece, x.shape[1] + more, axis=1)

  block, own = PartitionSpec(part(sharding.batch)), sharding.spec()
  run = jax.shard_map(local, mesh=sharding.mesh, in_specs=(block, own, block), out_specs=own)
  return run(before, x, after)


def unframe(z, size: int, sharding: SequenceSharding | None) -> tuple[jax.Array, jax.Array]:
  """`x` and `after` of what `frame` returned, `after` of M = `size` tokens."""
  if sharding is None or not sharding.time or not size:
    end = z.shape[1] - size
    return z[:, size:end], z[:, end:]
  last, more = sharding.pieces - 1, 2 * size // sharding.pieces

  def local(z):
    piece, near = sharding.piece(), _neighbours(sharding, z, size)
    wide = jnp.concatenate([near[0], z, near[1]], axis=1)
    x = jax.lax.dynamic_slice_in_dim(wide, 2 * size - more * piece, z.shape[1] - more, axis=1)
    after = jnp.where(piece == last, z[:, -size:], jnp.zeros((), z.dtype))
    return x, jax.lax.psum(after, sharding.time)

  block, own = PartitionSpec(part(sharding.batch)), sharding.spec()
  return jax.shard_map(local, mesh=sharding.mesh, in_specs=own, out_specs=(own, block))(z)


def _neighbours(sharding: SequenceSharding, x, size: int):
  """The last tokens of the piece before, the first ones of the piece after."""
  return sharding.shift(x[:, -size:]), sharding.shift(x[:, :size], -1)


def constrain(x: jax.Array, sharding: SequenceSharding | None, *, whole: bool = False) -> jax.Array:
  """Tokens `x [B, T, ...]` where the layout has them; an axis that does not divide is not cut.

  Without it the compiler may follow the parameters instead and move all tokens.

  Args:
    whole: all tokens of a row on every device that has the row.
  """
  if sharding is None:
    return x
  wanted = sharding.batch, () if whole else sharding.time
  pairs = zip(x.shape[:2], wanted, strict=True)
  cut = (part(axes) if size % ways(sharding.mesh, axes) == 0 else None for size, axes in pairs)
  return sharding.put(x, PartitionSpec(*cut))
