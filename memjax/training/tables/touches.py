"""The gradient of a table as what touched it, and which table a lookup has read."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import sharded
from memjax.core.lookup import SHARED, TOUCH, place
from memjax.core.module import layer_keys
from memjax.core.table_sharding import TableSharding, flat
from pallas_kernels.embedding_bag import TouchedRows, touched_rows, update_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Touches:
  """The gradient of one table in factors: `dV[r] = sum of weights[i, j] vectors[i]` over all reads
  (i, j) with `ids[i, j] = r`; never of the table's size.

  Of all lookups of a step that read the table: layers that share it, layers of a scan (a table
  `[L, N, dv]` counts as `[L N, dv]`), segments, microbatches.

  Attributes:
    ids: `[R, b]` int32; `rows` is padding.
    weights: `[R, b]` float.   vectors: `[R, dv]` float.
    rows: static, L N.
    sharding: static; how the table lies on a mesh. Then the factors are `[B, R, b]`, `[B, R, dv]`:
      tokens stay where they are.
    shape: static; `[*L, N, dv]` of a table on a mesh.
  """

  ids: jax.Array
  weights: jax.Array
  vectors: jax.Array
  rows: int = dataclasses.field(metadata={"static": True})
  sharding: TableSharding | None = dataclasses.field(default=None, metadata={"static": True})
  shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

  def merged(self) -> TouchedRows:
    """The touched rows, equal ids summed, all in memory at once: to look at, not to train."""
    return touched_rows(flat(self.ids), flat(self.weights), flat(self.vectors), self.rows)

  def scaled(self, factor: jax.Array) -> "Touches":
    """The gradient times `factor`."""
    return dataclasses.replace(self, weights=self.weights * factor)

  def where(self, flag: jax.Array) -> "Touches":
    """The same if `flag`, else no touch at all: an update then writes nothing."""
    return dataclasses.replace(self, ids=jnp.where(flag, self.ids, self.rows))

  def unstacked(self) -> "Touches":
    """One gradient of microbatches on a leading axis."""
    whole = flat if self.sharding is None else _by_row
    return dataclasses.replace(
      self, ids=whole(self.ids), weights=whole(self.weights), vectors=whole(self.vectors)
    )

  def update(self, arrays: Any, fn: Callable | Sequence[Callable], carry: Any) -> tuple[Any, Any]:
    """`update_rows` of a pytree of `[L N, ...]`; on a mesh of `[*L, N, ...]`, a device its own."""
    factors = self.ids, self.weights, self.vectors
    if self.sharding is None:
      return update_rows(*factors, arrays, fn, carry)
    return sharded.update_rows(self.sharding, *factors, arrays, fn, carry, shape=self.shape)

  def row_mean(self, a: jax.Array) -> jax.Array:
    """Inside of `update`: means over dv, `[R, dv]` to `[R]`."""
    if self.sharding is None:
      return jnp.mean(a, axis=-1)
    return self.sharding.sum_columns(jnp.sum(a, axis=-1)) / self.shape[-1]

  def own_key(self, key: jax.Array) -> jax.Array:
    """Inside of `update`: a key for this device's piece of the table."""
    cut = () if self.sharding is None else self.sharding.rows + self.sharding.columns
    return jax.random.fold_in(key, jax.lax.axis_index(cut)) if cut else key

  def squared_norm(self) -> jax.Array:
    """Of the gradient, equal ids summed first; as costly as an update."""

    def add(total, gradient, rows, live):
      return total + jnp.sum(jnp.square(gradient)), rows

    nothing = jnp.zeros((*(self.shape[:-1] or (self.rows,)), 0))  # no bytes: has so many rows
    return self.update(nothing, add, jnp.float32(0))[0]

  def bound(self) -> jax.Array:
    """At least the gradient's norm, from the factors alone: finite only where that is."""
    real = (self.ids >= 0) & (self.ids < self.rows)
    mass = jnp.sum(jnp.where(real, jnp.abs(self.weights.astype(jnp.float32)), 0), axis=-1)
    length = jnp.sqrt(jnp.sum(jnp.square(self.vectors.astype(jnp.float32)), axis=-1))
    return jnp.sum(jnp.where(jnp.any(real, axis=-1), mass * length, 0))


def owner(key: str, names: Iterable[str]) -> str | None:
  """The variable that a lookup has read.

  Args:
    key: what it emitted under: `<scope>/touch:<label>`, perhaps with a count.
    names: of the model's variables.

  Returns:
    For `shared:<name>` the variable at `shared/<name>`, None if the model has none; otherwise the
    one of that attribute in the layer that the scope names.

  Raises:
    ValueError: there are several, or the layer has none.
  """
  *scope, last = key.split("/")
  label = re.sub(r"(\.\d+)+$", "", last.removeprefix(TOUCH))
  paths = {name: name.split("/") for name in names}
  if label.startswith(SHARED):
    entry = ["shared", label.removeprefix(SHARED)]
    found = [name for name, path in paths.items() if path[-2:] == entry]
  else:
    inside = {n: path for n, path in paths.items() if layer_keys(n) == tuple(scope)}
    found = [n for n, path in inside.items() if path[-1] == label and "shared" not in path[:-1]]
  if len(found) > 1 or not (found or label.startswith(SHARED)):
    where = "/".join(scope) or "the model itself"
    raise ValueError(
      f"a lookup in layer {where} has the label {label!r}, of which there are {len(found)} "
      f"variables {sorted(found)}; a layer must have exactly one of that name"
    )
  return found[0] if found else None


def is_touch(key: str) -> bool:
  """Whether a name is that of a lookup's emission and tap."""
  return key.rpartition("/")[2].startswith(TOUCH)


def gather(
  tables: Mapping[str, jax.Array], owners: Mapping[str, str], emitted: Mapping[str, Any],
  taps: Mapping[str, jax.Array], sharding: TableSharding | None = None,
) -> dict[str, Touches]:  # fmt: skip
  """One `Touches` for every table that was read.

  Args:
    tables: `[*L, N, dv]` by name.   owners: the table of each lookup.
    emitted, taps: what each lookup emitted, and its tap's gradient.
    sharding: how the tables lie on a mesh.
  """
  found: dict[str, list[Touches]] = {}
  for key, name in owners.items():
    touched = _touches(tables[name], emitted[key], taps[key], sharding)
    found.setdefault(name, []).append(touched)
  return {name: _concatenate(parts) for name, parts in found.items()}


def _by_row(a: jax.Array) -> jax.Array:
  """`[*S, B, T, n]` as `[B, T S, n]`: neither B nor T is cut otherwise."""
  lead = a.ndim - 3
  a = a.transpose(lead, lead + 1, *range(lead), lead + 2)
  return a.reshape(a.shape[0], -1, a.shape[-1])


def _touches(table: jax.Array, read: Mapping[str, Any], tap: jax.Array, sharding) -> Touches:
  ids = place(read["ids"], table.shape, read["layers"]).astype(jnp.int32)
  weights, vectors = read.get("weights", tap), read.get("vectors", tap)
  rows, shape = math.prod(table.shape[:-1]), () if sharding is None else table.shape
  return Touches(ids, weights, vectors, rows, sharding, shape).unstacked()


def _concatenate(parts: list[Touches]) -> Touches:
  first = parts[0]

  def joined(arrays, padding):
    width = max(a.shape[-1] for a in arrays)
    pad = lambda a: [(0, 0)] * (a.ndim - 1) + [(0, width - a.shape[-1])]  # noqa: E731
    wide = [jnp.pad(a, pad(a), constant_values=padding) for a in arrays]
    return jnp.concatenate(wide, axis=-2)

  return dataclasses.replace(
    first,
    ids=joined([part.ids for part in parts], first.rows),
    weights=joined([part.weights for part in parts], 0),
    vectors=joined([part.vectors for part in parts], 0),
  )
