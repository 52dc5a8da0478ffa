"""The contract and what it needs: states, modules, the side channel, shardings. Imports no
family."""

from memjax.core import borders, channel, checks, late, lookup
from memjax.core.chunk import chunk
from memjax.core.memory import Context, Memory, bounded, clean, scan, segments
from memjax.core.module import (
  BatchStat,
  Fixed,
  Param,
  Table,
  flatten,
  join,
  param,
  replace,
  split,
  submodules,
  unflatten,
)
from memjax.core.replay import Replay, replay_scan
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
  "Axes",
  "BatchStat",
  "Context",
  "Fixed",
  "Memory",
  "Param",
  "Replay",
  "Stateless",
  "Table",
  "abstract_state",
  "as_state",
  "axes",
  "batch_size",
  "borders",
  "bounded",
  "channel",
  "checks",
  "chunk",
  "clean",
  "detach",
  "flatten",
  "join",
  "late",
  "leaf",
  "lookup",
  "param",
  "put_rows",
  "replace",
  "replay_scan",
  "scan",
  "segments",
  "select",
  "split",
  "state_bytes",
  "submodules",
  "take_rows",
  "unflatten",
]
