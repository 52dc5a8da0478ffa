"""Attention on one device or several: each for its own rows and heads; pieces of time meet."""

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from memjax.core.sequence_sharding import SequenceSharding
from memjax.core.table_sharding import part, ways
from memjax.transformer.attend import attend
from memjax.transformer.ring import Marks, ring_attend


def attend_apart(cut: SequenceSharding | None, q, k, v, mask=None, **options) -> jax.Array:
  """`attend`, each device for its own rows and heads; rows that do not divide are not cut."""
  if cut is None:
    return attend(q, k, v, mask, **options)
  rows = cut.batch if q.shape[0] % ways(cut.mesh, cut.batch) == 0 else ()
  own = PartitionSpec(part(rows), None, part(cut.heads), None)
  masks = PartitionSpec() if mask is None or mask.shape[0] == 1 else PartitionSpec(part(rows))
  run = functools.partial(attend, **options)
  made: Any = jax.shard_map(run, mesh=cut.mesh, in_specs=(own, own, own, masks), out_specs=own)(
    q, k, v, mask
  )
  return made


def attend_long(cut: SequenceSharding | None, q, k, v, marks: Marks, *, window: int | None = None):
  """Attention among many tokens that are not cut along time, a block of queries and one of keys at
  a time: memory is in proportion to the tokens. Rows that do not divide are not cut."""
  cut = cut or SequenceSharding(None)
  if q.shape[0] % ways(cut.mesh, cut.batch):
    cut = dataclasses.replace(cut, batch=())
  return ring_attend(cut, q, k, v, marks, window=window)


def attend_across(cut: SequenceSharding, q, k, v, marks: Marks, *, window: int | None = None):
  """Attention over tokens that are cut along time, by `cut.method`; as `ring_attend`."""
  if cut.method == "ring":
    return ring_attend(cut, q, k, v, marks, window=window)
  whole = dataclasses.replace(cut, time=(), heads=cut.heads + cut.time)

  def lie(a, there: SequenceSharding):  # from one to the other is an all-to-all
    spec = there.spec(part(there.heads), None)
    return jax.lax.with_sharding_constraint(a, NamedSharding(cut.mesh, spec))

  q, k, v = (lie(lie(a, cut), whole) for a in (q, k, v))
  return lie(lie(ring_attend(whole, q, k, v, marks, window=window), whole), cut)
