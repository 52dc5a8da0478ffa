"""Several processes that run one program: agreeing on values that are not arrays."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def from_first(value: Any) -> Any:
  """The JSON value of process 0, on all of them; every process calls it."""
  if jax.process_count() == 1:
    return value
  return _all(value if jax.process_index() == 0 else None)[0]


def from_all(value: Any) -> list:
  """The JSON values of all processes, in their order; every process calls it."""
  return [value] if jax.process_count() == 1 else _all(value)


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def whole(a: jax.Array) -> np.ndarray:
  """An array on the host, whichever processes its pieces lie in; every process calls it."""
  if a.is_fully_addressable:
    return np.asarray(a)
  return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def _all(value: Any) -> list:
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(text.size))).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: text.size] = text
  texts = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
  return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]
