"""The gradient of a table as what touched it, and which table a lookup has read."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core.lookup import SHARED, TOUCH, place
from memjax.core.module import layer_keys
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
  """

  ids: jax.Array
  weights: jax.Array
  vectors: jax.Array
  rows: int = dataclasses.field(metadata={"static": True})

  def merged(self) -> TouchedRows:
    """The touched rows, equal ids summed, all in memory at once: to look at, not to train."""
    return touched_rows(self.ids, self.weights, self.vectors, self.rows)

  def scaled(self, factor: jax.Array) -> "Touches":
    """The gradient times `factor`."""
    return dataclasses.replace(self, weights=self.weights * factor)

  def where(self, flag: jax.Array) -> "Touches":
    """The same if `flag`, else no touch at all: an update then writes nothing."""
    return dataclasses.replace(self, ids=jnp.where(flag, self.ids, self.rows))

  def unstacked(self) -> "Touches":
    """One gradient of microbatches on a leading axis."""
    flat = lambda a: a.reshape(-1, a.shape[-1])  # noqa: E731
    return Touches(flat(self.ids), flat(self.weights), flat(self.vectors), self.rows)

  def squared_norm(self) -> jax.Array:
    """Of the gradient, equal ids summed first; as costly as an update."""

    def add(total, gradient, rows, live):
      return total + live_squares(gradient, live), rows

    nothing = jnp.zeros((self.rows, 0))  # no bytes: says how many rows there are
    factors = self.ids, self.weights, self.vectors
    return update_rows(*factors, nothing, add, jnp.float32(0))[0]

  def bound(self) -> jax.Array:
    """At least the gradient's norm, from the factors alone: finite only where that is."""
    real = (self.ids >= 0) & (self.ids < self.rows)
    mass = jnp.sum(jnp.where(real, jnp.abs(self.weights.astype(jnp.float32)), 0), axis=-1)
    length = jnp.sqrt(jnp.sum(jnp.square(self.vectors.astype(jnp.float32)), axis=-1))
    return jnp.sum(jnp.where(jnp.any(real, axis=-1), mass * length, 0))


def live_squares(gradient: jax.Array, live: jax.Array) -> jax.Array:
  """Sum of squares of the rows `[R, dv]` that are live."""
  return jnp.sum(jnp.where(live[:, None], jnp.square(gradient), 0))


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
  taps: Mapping[str, jax.Array],
) -> dict[str, Touches]:  # fmt: skip
  """One `Touches` for every table that was read.

  Args:
    tables: `[*L, N, dv]` by name.   owners: the table of each lookup.
    emitted, taps: what each lookup emitted, and its tap's gradient.
  """
  found: dict[str, list[Touches]] = {}
  for key, name in owners.items():
    found.setdefault(name, []).append(_touches(tables[name], emitted[key], taps[key]))
  return {name: _concatenate(parts) for name, parts in found.items()}


def _touches(table: jax.Array, read: Mapping[str, Any], tap: jax.Array) -> Touches:
  ids = place(read["ids"], table.shape, read["layers"]).astype(jnp.int32)
  weights, vectors = read.get("weights", tap), read.get("vectors", tap)
  return Touches(ids, weights, vectors, math.prod(table.shape[:-1])).unstacked()


def _concatenate(parts: list[Touches]) -> Touches:
  rows, widest = parts[0].rows, max(part.ids.shape[-1] for part in parts)

  def widen(a, value):
    return jnp.pad(a, ((0, 0), (0, widest - a.shape[-1])), constant_values=value)

  return Touches(
    jnp.concatenate([widen(part.ids, rows) for part in parts]),
    jnp.concatenate([widen(part.weights, 0) for part in parts]),
    jnp.concatenate([part.vectors for part in parts]),
    rows,
  )
