"""Sums of sorted reads on an NVIDIA GPU: the gradient of a table, one program per touched row.

Each row is summed in registers in the order of its reads and written once: no atomics, no temporary
of the size of reads x dv, bit for bit repeatable. Compilers and shapes are those of `gpu.py`.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.embedding_bag import gpu
from pallas_kernels.embedding_bag.reads import sort_reads


def touched(
  ids: jax.Array, weights: jax.Array, vectors: jax.Array, *, rows: int, size: int
) -> tuple[jax.Array, jax.Array]:
  """The ids and the rows of `rows.touched_rows`, `size` of them.

  Raises:
    NotImplementedError: as `gpu.embedding_bag` does.
  """
  return run_touched(gpu.backend(vectors), ids, weights, vectors, rows, size)


def sum_sorted(
  token: jax.Array, weight: jax.Array, slot: jax.Array, vectors: jax.Array, first: jax.Array,
  size: int,
) -> jax.Array:  # fmt: skip
  """`rows.sum_sorted`; raises as `touched` does."""
  return run_sums(gpu.backend(vectors), token, weight, slot, vectors, first, size)


def run_touched(form, ids, weights, vectors, rows: int, size: int):
  """`touched` by one form."""
  found = rows + jnp.arange(size, dtype=jnp.int32)
  if 0 in (size, vectors.shape[1]):
    return found, jnp.zeros((size, vectors.shape[1]), jnp.float32)
  reads = sort_reads(ids, rows)
  inside = reads.row < rows
  rank = jnp.where(inside, reads.rank, size + 1)  # padding: dropped
  found = found.at[rank].set(reads.row, mode="drop")
  begin = _begins(rank, jnp.sum(inside, dtype=jnp.int32), size)
  weight = weights.reshape(-1).at[reads.order].get(mode="promise_in_bounds")
  return found, _launch(form, begin, reads.order // ids.shape[1], weight, vectors, size)


def run_sums(form, token, weight, slot, vectors, first, size: int) -> jax.Array:
  """`sum_sorted` by one form."""
  if 0 in (size, vectors.shape[1], token.size):
    return jnp.zeros((size, vectors.shape[1]), jnp.float32).at[:1].set(first)
  begin = _begins(slot, jnp.int32(slot.size), size).at[0].set(0)  # slot 0 may have no reads
  summed = _launch(form, begin, token.astype(jnp.int32), weight, vectors, size)
  return summed.at[0].add(first)


def _begins(slot: jax.Array, reads: jax.Array, size: int) -> jax.Array:
  """`[size + 1]`: the reads of a slot are begin[s] .. begin[s + 1]; slots after the last have
  none."""
  new = jnp.append(True, slot[1:] != slot[:-1])
  at = jnp.where(new, slot, size + 1)
  position = jnp.arange(slot.size, dtype=jnp.int32)
  return jnp.broadcast_to(reads, (size + 1,)).at[at].set(position, mode="drop")


def _launch(form, begin, tokens, weights, vectors, size: int) -> jax.Array:
  """`[size, dv]` sums: a program per slot and block of columns."""
  columns = vectors.shape[1]
  blocks = pl.cdiv(columns, form.block)
  flying = max(1, min(8, gpu.IN_FLIGHT // (form.block * form.itemsize)))

  def grad_rows(program, begin, tokens, weights, vectors, out):
    row, start = program // blocks, program % blocks * form.block

    def add(first, count, y):
      loaded = []
      for read in range(count):
        token = tokens[first + read]
        loaded.append((form.load(vectors, token, start), weights[first + read]))
      for vector, weight in loaded:
        y = y + weight.astype(jnp.float32) * vector.astype(jnp.float32)
      return y

    y = gpu.by_groups(begin[row], begin[row + 1], flying, add, form.zeros())
    form.store(out, row, start, y)

  each = columns * vectors.dtype.itemsize + 8
  cost = pl.CostEstimate(
    flops=2 * tokens.size * columns, transcendentals=0,
    bytes_accessed=tokens.size * each + 4 * size * (columns + 1),
  )  # fmt: skip
  arrays = begin, tokens, weights, vectors
  return form.launch(grad_rows, size * blocks, (size, columns), cost, *arrays)
