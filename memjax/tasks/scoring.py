"""What a measured score may be: intervals for tables, and scores that can be averaged over tasks.

    right, due = counts(predicted, batch)                       # [B] each, from memjax.tasks.task
    low, high = bootstrap(right, due)                           # of acc
    low, high = wilson((right == due).sum(), len(due))          # of em

On results, with numpy: examples are drawn again, not places, as those of one example fail together.
"""

import math
import statistics

import numpy as np


def wilson(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
  """Wilson's interval of a share, of `right` among `count` independent examples.

  Raises:
    ValueError: `right` is not among 0..count, or no examples.
  """
  right, count = int(right), int(count)
  if count < 1 or not 0 <= right <= count:
    raise ValueError(f"right={right} must lie in 0..count={count}, and count be at least 1")
  z, share = _deviations(level), right / count
  middle = share + z * z / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
  whole = 1 + z * z / count
  return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def bootstrap(
  right, due, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
  """Interval of `sum(right) / sum(due)` over examples drawn again with replacement.

  Args:
    right: `[B]`, how much of each example is right.
    due: `[B]`, of how much.

  Raises:
    ValueError: shapes that differ, or nothing that is due.
  """
  right, due = np.asarray(right, np.float64), np.asarray(due, np.float64)
  if right.ndim != 1 or right.shape != due.shape:
    raise ValueError(f"right {list(right.shape)} and due {list(due.shape)} must both be [B]")
  if not len(due) or not (due > 0).all():
    raise ValueError(f"due must be positive for each example, and not be empty: {due}")
  _deviations(level)
  draw, n = np.random.default_rng(seed), len(due)
  found = []
  for _ in range(resamples):
    again = draw.integers(0, n, n)
    found.append(right[again].sum() / due[again].sum())
  low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def above_chance(acc: float, chance: float) -> float:
  """0 at chance, 1 if all is right: what may be averaged over tasks."""
  return (acc - chance) / (1 - chance)


def _deviations(level: float) -> float:
  if not 0 < level < 1:
    raise ValueError(f"level={level} must lie between 0 and 1")
  return statistics.NormalDist().inv_cdf((1 + level) / 2)
