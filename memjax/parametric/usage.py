"""How much of a table is read: counts per slot, and what they say."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.state import stack_depths
from memjax.core.usage import trace


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Usage:
  """Reads of each of N slots.

  Attributes:
    reads: `[N]` int32, how often a slot was read.   weight: `[N]` float32, the sum of its weights.
  """

  reads: jax.Array
  weight: jax.Array

  def __add__(self, other: "Usage") -> "Usage":
    return Usage(self.reads + other.reads, self.weight + other.weight)


def no_usage(rows: int) -> Usage:
  """The usage of a table `[rows, dv]` that nobody has read."""
  return Usage(jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.float32))


def count_usage(ids: jax.Array, weights: jax.Array, rows: int) -> Usage:
  """Counts `ids` with `weights` (both of any one shape); ids from `rows` on are not counted."""
  ids, weights = ids.ravel(), weights.ravel().astype(jnp.float32)
  none = no_usage(rows)
  return Usage(
    none.reads.at[ids].add(1, mode="drop"), none.weight.at[ids].add(weights, mode="drop")
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """How many rows the table has that "ids" beside it read; holds no array."""

  count: int = dataclasses.field(metadata={"static": True})


def emit_reads(ids: jax.Array, weights: jax.Array, valid: jax.Array | None, rows: int) -> jax.Array:
  """Emits which rows of a table are read: "ids", "weights" and "rows", for `emitted_usage`; traces
  `slot_ids` and `slot_weights [B, T, b]` for `inspect`.

  Args:
    ids: `[B, T, b]`, below `rows`.   valid: `[B, T]` bool or None.   rows: N of the table.
    weights: `[B, T, b]`, or `[B, T, C, b]`: the sum of their magnitudes over channels is emitted.

  Returns:
    ids to read: where somebody collects, those of tokens that are not valid are padding, N.
  """
  if not channel.collecting():
    return ids
  ids = ids if valid is None else jnp.where(valid[..., None], ids, rows)
  weights = jnp.sum(jnp.abs(weights), axis=2) if weights.ndim == 4 else weights
  trace(slot_ids=ids, slot_weights=weights)
  channel.emit("ids", ids)
  channel.emit("weights", jax.lax.stop_gradient(weights))
  channel.emit("rows", Rows(rows))
  return ids


def emitted_usage(emitted: Mapping[str, Any]) -> dict[str, Usage]:
  """The usage of tables by the layers that read one, from what a call of the model emitted.

  Args:
    emitted: `Frame.emitted` of `channel.collect()` around the call.

  Returns:
    `{path of the layer: Usage}`, such as "2"; layers in a stack stand apart, calls are summed.
  """
  found: dict[str, Usage] = {}
  for name, ids in emitted.items():
    *scope, last = name.split("/")
    if last.partition(".")[0] != "ids":
      continue
    count = last.removeprefix("ids")
    weights, rows = (emitted["/".join([*scope, what + count])] for what in ("weights", "rows"))
    for path, pick in _layers(scope):
      usage = count_usage(pick(ids), pick(weights), rows.count)
      found[path] = found[path] + usage if path in found else usage
  return found


def _layers(scope: list[str]):
  """(path, how to take its part of `[..., L, B, T, b]`) of the layers that a scope stands for."""
  stacked = [i for i, part in enumerate(scope) if stack_depths(part) is not None]
  if not stacked:
    yield "/".join(scope), lambda a: a
    return
  place = stacked[-1]
  for index, depth in enumerate(stack_depths(scope[place]) or ()):
    path = "/".join([*scope[:place], str(depth), *scope[place + 1 :]])
    yield path, lambda a, index=index: a[..., index, :, :, :]


def usage_metrics(mass: jax.Array) -> dict[str, jax.Array]:
  """What a histogram over slots says, all float32 scalars.

  Args:
    mass: `[N]` reads or weights, `Usage.reads` or `Usage.weight`.

  Returns:
    used: share of slots with any mass, 0..1.
    kl: of the distribution over slots from the uniform one, in nats: 0 (even) to log N.
    gini: 0 (even) to 1.
    top50, top90, top99: how many of the most used slots hold that share of the mass.
  """
  slots = mass.shape[0]
  p = mass / jnp.maximum(jnp.sum(mass), 1e-30)
  ascending = jnp.sort(p)
  held = jnp.cumsum(ascending[::-1])
  metrics = {
    "used": jnp.mean(p > 0),
    "kl": jnp.log(slots) + jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1))),
    "gini": 1 - 2 * jnp.mean(jnp.cumsum(ascending)),
  }
  metrics |= {f"top{x}": jnp.sum(held < x / 100) + 1 for x in (50, 90, 99)}
  return {name: value.astype(jnp.float32) for name, value in metrics.items()}
