"""The contract and what it needs: states, modules, the side channel, shardings. Imports no family."""

from memjax.core import channel, checks
from memjax.core.memory import Context, Memory, clean, scan, segments
from memjax.core.module import BatchStat, Fixed, Param, Table, flatten, join, param, replace, split, submodules, unflatten
from memjax.core.state import (
  Axes,
  Stateless,
  abstract_state,
  as_state,
  axes,
  batch_size,
  detach,
  leaf,
  put_rows,
  select,
  state_bytes,
  take_rows,
)

__all__ = [
  "Axes", "BatchStat", "Context", "Fixed", "Memory", "Param", "Stateless", "Table", "abstract_state", "as_state", "axes",
  "batch_size", "channel", "checks", "clean", "detach", "flatten", "join", "leaf", "param", "put_rows", "replace", "scan",
  "segments", "select", "split", "state_bytes", "submodules", "take_rows", "unflatten",
]  # fmt: skip
