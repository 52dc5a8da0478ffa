"""Attention on one device or several: each for its own rows and heads; pieces of time meet."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec

from memjax.core.sequence_sharding import SequenceSharding
from memjax.core.table_sharding import part, ways
from memjax.transformer.attend import attend
from memjax.transformer.ring import Marks, ring_attend


def attend_apart(cut: SequenceSharding | None, q, k, v, mask=None, **options) -> jax.Array:
  """`attend`, each device for its own rows and heads; rows that do not divide are not cut."""
  if cut is None or cut.mesh is None:
    return attend(q, k, v, mask, **options)
  rows = cut.batch if q.shape[0] % ways(cut.mesh, cut.batch) == 0 else ()
  own = PartitionSpec(part(rows), None, part(cut.heads), None)
  masks = PartitionSpec() if mask is None or mask.shape[0] == 1 else PartitionSpec(part(rows))
  run = functools.partial(attend, **options)
  made: Any = jax.shard_map(run, mesh=cut.mesh, in_specs=(own, own, own, masks), out_specs=own)(
    q, k, v, mask
  )
  return made


def attend_by_blocks(
  cut: SequenceSharding | None, q, k, v, marks: Marks, *, window: int | None = None
) -> jax.Array:
  """Attention a block of queries and one of keys at a time: memory is in proportion to the tokens.

  Tokens that are cut along time meet by `cut.method`; rows that do not divide are then refused,
  else they are not cut.
  """
  cut = cut or SequenceSharding(None)
  if not cut.time and q.shape[0] % ways(cut.mesh, cut.batch):
    cut = dataclasses.replace(cut, batch=())
  if not cut.time or cut.method == "ring":
    return ring_attend(cut, q, k, v, marks, window=window)
  whole = dataclasses.replace(cut, time=(), heads=cut.heads + cut.time)

  def lie(a, there: SequenceSharding):  # from one to the other is an all-to-all
    return there.put(a, there.spec(part(there.heads), None))

  q, k, v = (lie(lie(a, cut), whole) for a in (q, k, v))
  return lie(lie(ring_attend(whole, q, k, v, marks, window=window), whole), cut)
