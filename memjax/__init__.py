"""Memory layers for JAX: one contract, published architectures, plain functions.

  memory = memjax.slots.NeuralTuringMachine(64, rngs=nnx.Rngs(0))
  state = memory.init_state(batch)
  y, state = memory(x, state)

Families: `slots`, `parametric`, `recurrent`, `transformer`. Around them: `core` (the contract),
`testing` (its laws), `inspect` (what a memory did), `training`, `data`; the last four are imported
on first use.
"""

import importlib

from memjax import core, parametric, recurrent, slots, transformer
from memjax.core import (
  Context,
  Memory,
  Replay,
  Stateless,
  abstract_state,
  as_state,
  detach,
  flatten,
  join,
  leaf,
  put_rows,
  replace,
  scan,
  select,
  split,
  state_bytes,
  take_rows,
  unflatten,
)

__version__ = "0.1.0"

_LAZY = ("data", "inspect", "testing", "training")


def __getattr__(name: str):
  if name in _LAZY:
    return importlib.import_module(f"memjax.{name}")
  raise AttributeError(f"module 'memjax' has no attribute {name!r}")


__all__ = [
  "Context",
  "Memory",
  "Replay",
  "Stateless",
  "abstract_state",
  "as_state",
  "core",
  "detach",
  "flatten",
  "join",
  "leaf",
  "parametric",
  "put_rows",
  "recurrent",
  "replace",
  "scan",
  "select",
  "slots",
  "split",
  "state_bytes",
  "take_rows",
  "transformer",
  "unflatten",
]
