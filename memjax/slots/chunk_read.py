"""A two-level read: the chunks whose summaries fit a query best, and attention within each.

Hierarchical chunk attention memory: Lampinen, Chan, Banino, Hill, "Towards mental time travel: a
hierarchical memory for reinforcement learning agents", NeurIPS 2021, arXiv 2105.14039.

B batch, Q queries, E entries, n chunks of c entries, k chunks that a query reads, G groups, D
width, H heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks
from memjax.slots import attending

EPS = 1e-5  # added to the number of entries whose mean is a summary, as in the authors' code
_UNSEEN = -1e30  # a score whose weight is zero


class Chunks(NamedTuple):
  """Entries in chunks.

  Attributes:
    entries: `[B, n, c, D]`, zero where there is none.
    seen: `[B, n, c]` bool, where there is one.
    summary: `[B, n, D]`, the sum of a chunk's entries over their number + `EPS`.
  """

  entries: jax.Array
  seen: jax.Array
  summary: jax.Array


class Reads(NamedTuple):
  """What a query read: the chunks `[B, Q, k]` int32, the weights of their entries `[B, Q, k, H,
  c]` float32."""

  index: jax.Array
  weights: jax.Array


def by_time(times: jax.Array, chunk: int) -> jax.Array:
  """Which entry is where in chunks of c by rising time: `[B, n, c]` int32, E where none is.

  Entries that hold nothing, of time -1, come first, and what is missing in the first chunk stands
  before them: the last chunk is whole.

  Args:
    times: `[B, E]` int32.
  """
  size = times.shape[1]
  front = -size % chunk
  order = jnp.argsort(times, axis=1, stable=True).astype(jnp.int32)
  order = jnp.pad(order, ((0, 0), (front, 0)), constant_values=size)
  return order.reshape(times.shape[0], -1, chunk)


def most_chunks(size: int, groups: int, chunk: int) -> int:
  """The most chunks of c that E entries of G groups can fill, no chunk shared by two groups."""
  return size if size < groups else groups + (size - groups) // chunk


def by_group(times: jax.Array, group: jax.Array, groups: int, chunk: int) -> jax.Array:
  """As `by_time`, but no chunk holds two groups: `[B, most_chunks(E, G, c), c]` int32.

  The entries of a group fill its chunks by rising time; its last one may end early.

  Args:
    times: `[B, E]` int32; -1: nothing is there.   group: `[B, E]` int32, below `groups`.
  """
  batch, size = times.shape
  key = jnp.where(times >= 0, group, groups).astype(jnp.int32)
  slots = jax.lax.broadcasted_iota(jnp.int32, times.shape, 1)
  key, _, order = jax.lax.sort((key, times, slots), dimension=1, num_keys=2, is_stable=True)
  count = jnp.sum(key[:, :, None] == jnp.arange(groups).reshape(1, 1, -1), axis=1)
  first, chunks = jnp.cumsum(count, axis=1) - count, -(-count // chunk)
  start = jnp.cumsum(chunks, axis=1) - chunks
  own = jnp.minimum(key, groups - 1)
  rank = slots - jnp.take_along_axis(first, own, axis=1)
  at = jnp.take_along_axis(start, own, axis=1) * chunk + rank
  places = most_chunks(size, groups, chunk) * chunk
  at = jnp.where(key < groups, at, places)
  table = jnp.full((batch, places), size, jnp.int32)
  table = table.at[jnp.arange(batch)[:, None], at].set(order, mode="drop")
  return table.reshape(batch, -1, chunk)


def gather(entries: jax.Array, filled: jax.Array, table: jax.Array) -> Chunks:
  """The chunks of `table [B, n, c]`, which holds places in `entries [B, E, D]`, or E.

  Args:
    filled: `[B, E]` bool, which entries count.
  """
  batch, size = filled.shape
  flat = table.reshape(batch, -1)
  index = jnp.minimum(flat, size - 1)
  seen = (jnp.take_along_axis(filled, index, axis=1) & (flat < size)).reshape(table.shape)
  found = jnp.take_along_axis(entries, index[:, :, None], axis=1)
  found = jnp.where(seen[..., None], found.reshape(*table.shape, -1), 0)
  return Chunks(found, seen, summarise(found, seen))


def summarise(entries: jax.Array, seen: jax.Array | None = None) -> jax.Array:
  """`[..., c, D] -> [..., D]`: the sum of those `seen [..., c]` over their number + `EPS`; the
  plain mean of all where `seen` is None."""
  if seen is None:
    return jnp.mean(entries, axis=-2)
  total = jnp.sum(jnp.where(seen[..., None], entries, 0), axis=-2, dtype=jnp.float32)
  number = jnp.sum(seen, axis=-1, dtype=jnp.float32)[..., None]
  return (total / (number + EPS)).astype(entries.dtype)


def best(scores: jax.Array, there: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """The `count` chunks of the highest scores and their softmax: `[B, Q, k]` float32 and int32.

  Args:
    scores: `[B, Q, n]` float32.   there: `[B, n]` bool; a chunk that is not there has weight zero.
  """
  scores = jnp.where(there[:, None], scores, _UNSEEN)
  scores, index = jax.lax.top_k(scores, count)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.where(scores <= _UNSEEN / 2, 0, weights), index  # so that a NaN stays


def spread(table: jax.Array, reads: Reads, size: int) -> jax.Array:
  """The weights of reads by entry, `[B, Q, H, E]`, of chunks `table [B, n, c]`."""
  places = _take(table, reads.index)
  found = jnp.moveaxis(reads.weights, 3, 2)  # [B, Q, H, k, c]
  places = jnp.broadcast_to(places[:, :, None], found.shape)
  flat = found.reshape(*found.shape[:3], -1), places.reshape(*found.shape[:3], -1)

  def add(weights, places):
    return jnp.zeros(size).at[places].add(weights, mode="drop")

  return jax.vmap(jax.vmap(jax.vmap(add)))(*flat)


def _take(a: jax.Array, index: jax.Array) -> jax.Array:
  """`a [B, n, ...]` at `index [B, Q, k]`: `[B, Q, k, ...]`."""
  return jax.vmap(lambda a, index: a.at[index].get(mode="clip"))(a, index)


class ChunkRead(nnx.Module):
  """`y = sum_n w_n MHA(q, chunk n)` over the k chunks of the highest `(q Ws) . (s_n Wk) / sqrt(D)`.

  w is the softmax of those k scores, s_n a chunk's summary. One attention of H heads serves all
  chunks; queries, keys and values have no biases, its output has one. A query that finds no entry
  at all reads zeros. The choice of chunks has no gradient; their weights and summaries have.

  Args:
    dim, heads: D and H.   top_k: k.
  """

  def __init__(self, dim: int, *, heads: int, top_k: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
    checks.positive(top_k=top_k)
    checks.divides("heads", heads, "dim", dim)
    self.top_k = top_k
    axes = ("embed", "memory")
    self.query = attending.linear(dim, dim, axes, param_dtype, rngs, bias=True)
    self.key = attending.linear(dim, dim, axes, param_dtype, rngs, bias=True)
    self.inside = attending.Heads(dim, heads, bias=True, param_dtype=param_dtype, rngs=rngs)

  def __call__(self, q: jax.Array, chunks: Chunks) -> tuple[jax.Array, Reads]:
    """`[B, Q, D]`, dtype of q, for queries `[B, Q, D]`, and what they read.

    Raises:
      ValueError: there are fewer than k chunks.
    """
    if chunks.seen.shape[1] < self.top_k:
      raise ValueError(
        f"top_k={self.top_k} exceeds the {chunks.seen.shape[1]} chunks that there are"
      )
    there, kind = jnp.any(chunks.seen, axis=2), {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("bqd,bnd->bqn", self.query(q), self.key(chunks.summary), **kind)
    weights, index = best(scores * q.shape[-1] ** -0.5, there, self.top_k)
    entries, seen = _take(chunks.entries, index), _take(chunks.seen, index)[:, :, :, None]
    inside = self.inside
    heads = inside.split(inside.query, q)
    keys, values = inside.split(inside.key, entries), inside.split(inside.value, entries)
    scores = jnp.einsum("bqhd,bqkchd->bqkhc", heads, keys, **kind) * heads.shape[-1] ** -0.5
    shares = jax.nn.softmax(jnp.where(seen, scores, _UNSEEN), axis=-1)
    shares = jnp.where(seen, shares, 0) * weights[..., None, None]
    mixed = jnp.einsum("bqkhc,bqkchd->bqhd", shares.astype(values.dtype), values)
    y = inside.out(mixed.reshape(q.shape))  # once: the weights sum to 1
    return jnp.where(jnp.any(there, axis=1)[:, None, None], y, 0), Reads(index, shares)
