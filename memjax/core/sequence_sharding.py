"""How tokens `[B, T, ...]` lie on a mesh, and what memories need of it where time is cut.

The devices that cut time hold neighbouring pieces of equal length, in order. What crosses the
borders of the pieces is written out: sums that run over tokens, and blocks put around them.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core.table_sharding import Names, divide, part, ways

METHODS = ("ring", "all_to_all")


@dataclasses.dataclass(frozen=True)
class SequenceSharding:
  """How tokens and heads lie on a mesh; hashable, so a static field of a module.

  Attributes:
    mesh: the devices.
    batch, time: mesh axes that cut tokens `[B, T, ...]`.
    heads: mesh axes that cut the heads of attention.
    method: how attention meets the keys of other pieces: "ring" passes keys and values around;
      "all_to_all" exchanges pieces of time for heads and back (arXiv 2309.14509).
    gather_time: a memory that goes through the tokens one after another gets all of them on every
      device, instead of being refused.
  """

  mesh: Mesh
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

  def spec(self, *last) -> PartitionSpec:
    """Of tokens `[B, T, ...]`."""
    return PartitionSpec(part(self.batch), part(self.time), *last)

  def map(self, fn: Callable, into, out) -> Callable:
    """`shard_map` over all mesh axes; `fn` gets and returns one device's pieces."""
    return jax.shard_map(fn, mesh=self.mesh, in_specs=into, out_specs=out, check_vma=False)

  # ---- inside of `map`

  def shift(self, tree, by: int = 1):
    """Arrays from the piece `by` places before this one; the first follows the last."""
    n = self.pieces
    move = [(i, (i + by) % n) for i in range(n)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, self.time, move), tree)

  def piece(self) -> jax.Array:
    """Which piece of time this device holds."""
    return jax.lax.axis_index(self.time)


def constrain(x: jax.Array, sharding: SequenceSharding | None, *, whole: bool = False) -> jax.Array:
  """Tokens `x [B, T, ...]` where the layout has them; an axis that does not divide is not cut.

  Without it the compiler may follow the parameters instead and move all tokens.

  Args:
    whole: all tokens of a row on every device that has the row.
  """
  if sharding is None:
    return x
  mesh = sharding.mesh
  wanted = sharding.batch, () if whole else sharding.time
  pairs = zip(x.shape[:2], wanted, strict=True)
  cut = (part(axes) if size % ways(mesh, axes) == 0 else None for size, axes in pairs)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*cut)))
