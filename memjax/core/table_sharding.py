"""How tables and tokens lie on a mesh, and the four exchanges between devices that lookups are made
of.

A group is the devices that share a table and have tokens of their own; each of them works on the
tokens of the whole group, with its own piece of the table.

  gather   numbers per slot (ids, weights): the group's                all_gather
  scatter  its transpose: parts of numbers per slot, summed: own       reduce_scatter
  spread   vectors: the group's, own columns                           all_to_all; rows: all_gather
  collect  its transpose: parts of vectors, summed: own, all columns   reduce_scatter; all_to_all

Where a mesh axis cuts a table and no tokens, there is nothing to gather: parts are summed over it,
and vectors stay cut by columns.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Names = tuple[str, ...]


def part(axes: Names):
  """Mesh axes as an entry of a `PartitionSpec`."""
  return axes if len(axes) > 1 else (axes[0] if axes else None)


def ways(mesh: Mesh | None, axes: Names) -> int:
  """Into how many pieces mesh axes cut; one without a mesh."""
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in axes)


def described(mesh: Mesh | None, axes: Names) -> str:
  """Such as "model=4 * context=2"."""
  return " * ".join(f"{axis}={ways(mesh, (axis,))}" for axis in axes)


def divide(mesh: Mesh | None, **sizes: tuple[int, Names]) -> None:
  """Raises ValueError unless every size is divisible by what its mesh axes cut it into."""
  for name, (size, axes) in sizes.items():
    if size % ways(mesh, axes):
      raise ValueError(f"{name}={size} is not divisible by {described(mesh, axes)}")


def psum(a: jax.Array, axes: Names) -> jax.Array:
  """The sum over mesh axes, of which there may be none."""
  return jax.lax.psum(a, axes) if axes else a


def flat(a: jax.Array) -> jax.Array:
  """`[..., n]` as `[m, n]`."""
  return a.reshape(-1, a.shape[-1])


@dataclasses.dataclass(frozen=True)
class TableSharding:
  """How tables lie on a mesh, and tokens with them; hashable, so a static field of a module.

  Attributes:
    mesh: the devices.
    rows, columns: mesh axes that cut a table `[N, dv]`, or one of stacked layers `[*L, N, dv]`.
    batch, time: mesh axes that cut tokens `[B, T, ...]`.
    heads: mesh axes that cut the heads of a search.

  Raises:
    ValueError: an axis stands twice, or tokens are cut over a part of what cuts a table.
  """

  mesh: Mesh
  rows: Names = ()
  columns: Names = ()
  batch: Names = ()
  time: Names = ()
  heads: Names = ()

  def __post_init__(self):
    if set(self.rows) & set(self.columns) or set(self.batch) & set(self.time):
      raise ValueError(
        f"rows={self.rows} and columns={self.columns}, and batch={self.batch} and "
        f"time={self.time}, must be different mesh axes"
      )
    for what in ("rows", "columns"):
      axes = getattr(self, what)
      if 0 < len(set(axes) & set(self.tokens)) < len(axes):
        raise ValueError(
          f"{what} of tables are cut over {axes}, tokens over {self.tokens}: over a part of them; "
          "cut tokens over all of them or none"
        )

  @property
  def tokens(self) -> Names:
    """Mesh axes that cut tokens."""
    return self.batch + self.time

  @property
  def group(self) -> Names:
    """Mesh axes that cut both tables and tokens."""
    return tuple(axis for axis in self.rows + self.columns if axis in self.tokens)

  @property
  def replicas(self) -> Names:
    """Mesh axes that cut tokens, and along which tables are copied."""
    return tuple(axis for axis in self.tokens if axis not in self.group)

  def ways(self, axes: Names) -> int:
    """Into how many pieces mesh axes cut."""
    return ways(self.mesh, axes)

  def table_spec(self, *, columns: bool = True, stack: int = 0) -> PartitionSpec:
    """Of a table `[*L, N, dv]`, `stack` axes L; of `[*L, N, ...]` beside it if not `columns`."""
    last = [part(self.columns)] if columns else []
    return PartitionSpec(*[None] * stack, part(self.rows), *last)

  def vector_spec(self) -> PartitionSpec:
    """Of vectors `[B, T, dv]`: cut by columns where tokens are not cut with them."""
    return self.token_spec(None if self._meets(self.columns) else part(self.columns))

  def token_spec(self, *last) -> PartitionSpec:
    """Of tokens `[B, T, ...]`."""
    return PartitionSpec(part(self.batch), part(self.time), *last)

  def sharding(self, *, columns: bool = True, stack: int = 0) -> NamedSharding:
    """That of `table_spec`."""
    return NamedSharding(self.mesh, self.table_spec(columns=columns, stack=stack))

  def check(self, table: Sequence[int], batch: int, time: int) -> None:
    """Raises ValueError unless a table of this shape and tokens `[B, T]` can be cut so."""
    *_, rows, dim = table
    sizes = {"rows": (rows, self.rows), "value_dim": (dim, self.columns)}
    self.divide(**sizes, batch=(batch, self.batch), time=(time, self.time))

  def divide(self, **sizes: tuple[int, Names]) -> None:
    """Raises ValueError unless every size is divisible by what its mesh axes cut it into."""
    divide(self.mesh, **sizes)

  # ---- inside of `shard_map`, t tokens on this device

  def sum_columns(self, a: jax.Array) -> jax.Array:
    """The sum over the devices that hold other columns of the same rows."""
    return psum(a, self.columns)

  def own(self, ids: jax.Array, table: Sequence[int]) -> jax.Array:
    """Ids within this device's piece `[*L, n, dv]` of a table, both seen as of L n rows; L n, which
    is padding, for rows of others."""
    if not self.rows:
      return ids
    layers, rows = math.prod(table[:-2]), table[-2]
    whole = rows * self.ways(self.rows)
    row = ids % whole - jax.lax.axis_index(self.rows) * rows
    mine = (row >= 0) & (row < rows) & (ids >= 0) & (ids < layers * whole)
    return jnp.where(mine, ids // whole * rows + row, layers * rows)

  def gather(self, a: jax.Array, *, replicas: bool = False) -> jax.Array:
    """`[t, b]` of own tokens to `[group * t, b]`; of all groups too if `replicas`."""
    axes = (self.replicas if replicas else ()) + self.group
    return flat(jax.lax.all_gather(a, axes)) if axes else a

  def scatter(self, parts: jax.Array) -> jax.Array:
    """`[group * t, b]`, parts of a sum over rows and columns, to `[t, b]`."""
    if self.group:
      parts = parts.reshape(self.ways(self.group), -1, parts.shape[-1])
      parts = jax.lax.psum_scatter(parts, self.group)
    return psum(parts, tuple(axis for axis in self.rows + self.columns if axis not in self.group))

  def spread(self, a: jax.Array) -> jax.Array:
    """`[t, dv]` of own tokens (or own columns, see `vector_spec`) to `[group * t, own columns]`."""
    if self._meets(self.columns):
      a = a.reshape(a.shape[0], self.ways(self.columns), -1)
      a = jax.lax.all_to_all(a, self.columns, split_axis=1, concat_axis=0)
    if self._meets(self.rows):
      a = jax.lax.all_gather(a, self.rows)
    return flat(a)

  def collect(self, parts: jax.Array) -> jax.Array:
    """`[group * t, own columns]`, parts of a sum over rows, to `[t, dv]` (or own columns)."""
    dim = parts.shape[1]
    if self._meets(self.rows):
      parts = jax.lax.psum_scatter(parts.reshape(self.ways(self.rows), -1, dim), self.rows)
    else:
      parts = psum(parts, self.rows)
    parts = flat(parts)
    if self._meets(self.columns):
      parts = parts.reshape(self.ways(self.columns), -1, dim)
      parts = jax.lax.all_to_all(parts, self.columns, split_axis=0, concat_axis=1)
      parts = parts.reshape(parts.shape[0], -1)
    return parts

  def _meets(self, axes: Names) -> bool:
    return bool(axes) and axes[0] in self.tokens
