"""Findings: what differs, where, by how much, and what usually causes it."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from memjax.core import axes

Names = Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that a law found wrong.

  Attributes:
    part: of the law, such as "values" or "nan state".
    message: what, where, by how much.
  """

  part: str
  message: str


def outputs(y: np.ndarray) -> dict[str, np.ndarray]:
  """An output as named arrays, for `differences`."""
  return {"y": y}


def states(state) -> dict[str, np.ndarray]:
  """A state's leaves by name, for `differences`."""
  flat, _ = jax.tree_util.tree_flatten_with_path(state)
  return {"state" + jax.tree_util.keystr(path): a for path, a in flat}


def gradients(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gradients of parameters by name, for `differences`."""
  return {f"d loss / d {name}": a for name, a in params.items()}


def state_axes(state) -> dict[str, tuple[str, ...]]:
  """Names of the axes of `states(state)`."""
  return dict(zip(states(state), jax.tree.leaves(axes(state)), strict=True))


def differences(
  part: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], tolerance: float, *,
  where: np.ndarray | None = None, names: Names | None = None, note: str = "",
) -> list[Finding]:  # fmt: skip
  """At most one finding: the worst element of all arrays, where it is, and how many arrays differ.

  Args:
    part: of the law.
    got, want: arrays by name; those of `want` must be finite.
    tolerance: of `|got - want|`, relative to the largest element of the array (and, a hundredth of it, of all arrays).
    where: `[B, T] bool`, the outputs to compare; None: all.
    names: of each array's axes; those of `y` are row, token, feature.
    note: said after the numbers, such as what was compared with what.
  """
  top = max((_largest(_pick(a, where)) for a in want.values()), default=0.0)
  bad = []
  for name, a in want.items():
    limit = tolerance * (_largest(_pick(a, where)) + 0.01 * top + 1e-6)
    off = _off(got[name], a, where)
    if off.size and not np.max(off) <= limit:
      bad.append((np.max(off) / limit, name, off, limit))
  if not bad:
    return []
  _, name, off, limit = max(bad, key=lambda entry: entry[0])
  message = _message(
    name, got[name], want[name], off, limit, (names or {}).get(name, ("row", "token", "feature"))
  )
  others = f"; {len(bad) - 1} of {len(want) - 1} other arrays differ too" if len(bad) > 1 else ""
  return [Finding(part, message + others + (f" ({note})" if note else ""))]


def not_finite(
  part: str, arrays: Mapping[str, np.ndarray], *, where: np.ndarray | None = None, note: str = ""
) -> list[Finding]:
  """A finding for the first array that holds a NaN or an infinity (at `where [B, T]`)."""
  for name, a in arrays.items():
    bad = ~np.isfinite(_as_float(a))
    if where is not None:
      bad[~where] = False
    if bad.any():
      place = place_of(np.argwhere(bad)[0], ("row", "token", "feature"))
      return [
        Finding(
          part,
          f"{name}{place} is not finite, {bad.sum()} of {bad.size} elements are not"
          + (f" ({note})" if note else ""),
        )
      ]
  return []


def place_of(index, names: tuple[str, ...]) -> str:
  """An index in words: `[row 1, token 5, feature 3]`; of a parameter or a scalar, the plain index."""
  index = [int(i) for i in index]
  if not index:
    return ""
  if len(names) != len(index):
    return str(index)
  return (
    "["
    + ", ".join(
      f"{'row' if name == 'batch' else name} {i}" for name, i in zip(names, index, strict=True)
    )
    + "]"
  )


def _as_float(a: np.ndarray) -> np.ndarray:
  return np.asarray(a).astype(np.float64)


def _pick(a: np.ndarray, where: np.ndarray | None) -> np.ndarray:
  return a if where is None else np.asarray(a)[where]


def _largest(a: np.ndarray) -> float:
  a = np.abs(_as_float(a))
  a = a[np.isfinite(a)]
  return float(a.max()) if a.size else 0.0


def _off(got, want, where) -> np.ndarray:
  """`|got - want|`, infinite where either is not finite, 0 outside of `where`."""
  if got.shape != want.shape:
    return np.full((1,) * max(1, np.ndim(want)), np.inf)
  got, want = _as_float(got), _as_float(want)
  with np.errstate(invalid="ignore"):
    off = np.abs(got - want)
  off = np.where(np.isfinite(off), off, np.inf)
  if where is not None:
    off[~where] = 0
  return off


def _message(name, got, want, off, limit, names) -> str:
  if got.shape != want.shape:
    return f"{name} has shape {list(got.shape)}, expected {list(want.shape)}"
  index = np.unravel_index(np.argmax(off), off.shape)
  number = lambda a: f"{_as_float(a)[index]:.5g}"  # noqa: E731
  text = f"{name}{place_of(index, names)} is {number(got)}, expected {number(want)}: off by {off[index]:.2g}, allowed {limit:.1g}"
  return text + f"; {int((off > limit).sum())} of {off.size} elements differ"
