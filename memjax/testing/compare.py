"""Findings: what differs, where, by how much."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from memjax.core import axes

Y_AXES = ("row", "token", "feature")


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that a law found wrong.

  Attributes:
    part: of the law, such as "values" or "nan state".
    message: what, where, by how much.
  """

  part: str
  message: str


def same_y(case, part: str, got, want, note: str, where=None) -> list[Finding]:
  """Findings on outputs `[B, T, E]`, of which those at `where [B, T]` count."""
  return differences(part, {"y": got}, {"y": want}, case.tolerance, where=where, note=note)


def same_state(case, part: str, got, want, note: str) -> list[Finding]:
  """Findings on states, leaf by leaf."""
  return differences(
    part, states(got), states(want), case.tolerance, names=state_axes(want), note=note
  )


def same_gradients(case, part: str, got: Mapping, want: Mapping, note: str) -> list[Finding]:
  """Findings on gradients by name."""
  named = lambda arrays: {f"d loss / d {name}": a for name, a in arrays.items()}  # noqa: E731
  return differences(part, named(got), named(want), 10 * case.tolerance, note=note)


def states(state) -> dict[str, Any]:
  """A state's leaves by name: `state.memory`, `state.layers['0'].h`."""
  flat, _ = jax.tree_util.tree_flatten_with_path(state)
  return {"state" + jax.tree_util.keystr(path): a for path, a in flat}


def state_axes(state) -> dict[str, tuple[str, ...]]:
  """Names of the axes of `states(state)`."""
  return dict(zip(states(state), jax.tree.leaves(axes(state)), strict=True))


def differences(
  part: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], tolerance: float, *,
  where: np.ndarray | None = None, names: Mapping | None = None, note: str = "",
) -> list[Finding]:  # fmt: skip
  """At most one finding: the worst element of all arrays, and how many others differ.

  Args:
    part: of the law.
    got, want: arrays by name. An element that is not finite in either differs.
    tolerance: of `|got - want|`, relative to the largest element of the array (and, a hundredth of
      it, of all arrays).
    where: `[B, T] bool`, what to compare of each array; None: all.
    names: of each array's axes; None: those of y.
    note: said after the numbers: what was compared with what.
  """
  top = max((_largest(a, where) for a in want.values()), default=0.0)
  bad = []
  for name, a in want.items():
    limit = tolerance * (_largest(a, where) + 0.01 * top + 1e-6)
    off = _off(got[name], a, where)
    if off.size and not np.max(off) <= limit:
      bad.append((np.max(off) / limit, name, off, limit))
  if not bad:
    return []
  _, name, off, limit = max(bad, key=lambda entry: entry[0])
  message = _message(name, got[name], want[name], off, limit, (names or {}).get(name, Y_AXES))
  if len(bad) > 1:
    message += f"; {len(bad) - 1} of {len(want) - 1} other arrays differ too"
  return [Finding(part, f"{message} ({note})")]


def not_finite(part: str, name: str, a: np.ndarray, note: str, where=None) -> list[Finding]:
  """A finding if the array holds a NaN or an infinity (at `where [B, T]`)."""
  bad = ~np.isfinite(_as_float(a))
  if where is not None:
    bad[~where] = False
  if not bad.any():
    return []
  place = _place(np.argwhere(bad)[0], Y_AXES)
  return [Finding(part, f"{name}{place} is not finite, one of {bad.sum()} ({note})")]


def _place(index, names: tuple[str, ...]) -> str:
  """An index in words, `[row 1, token 5, feature 3]`; of a parameter, the plain index."""
  index = [int(i) for i in index]
  if not index or len(names) != len(index):
    return str(index) if index else ""
  named = zip(names, index, strict=True)
  return "[" + ", ".join(f"{'row' if name == 'batch' else name} {i}" for name, i in named) + "]"


def _as_float(a: np.ndarray) -> np.ndarray:
  return np.asarray(a).astype(np.float64)


def _largest(a: np.ndarray, where: np.ndarray | None) -> float:
  a = np.abs(_as_float(a if where is None else a[where]))
  a = a[np.isfinite(a)]
  return float(a.max()) if a.size else 0.0


def _off(got, want, where) -> np.ndarray:
  """`|got - want|`, infinite where either is not finite, 0 outside of `where`."""
  if got.shape != want.shape:
    return np.full((1,), np.inf)
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
  got, want = _as_float(got)[index], _as_float(want)[index]
  return (
    f"{name}{_place(index, names)} is {got:.5g}, expected {want:.5g}: off by {off[index]:.2g}, "
    f"allowed {limit:.0e}; {int((off > limit).sum())} of {off.size} elements differ"
  )
