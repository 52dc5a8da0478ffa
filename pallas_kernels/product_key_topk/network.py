"""The search on a CPU: a sorting network whose lists stand side by side.

XLA's top-k takes one list after the other, and compares one number at a time. Here a comparison is
the larger and the smaller of two rows of `LISTS` lists: vector instructions, without branches.
The network takes a third of the time; only for many lists.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np

LISTS = 64  # side by side: their 256 numbers stay in L2; XLA cuts more of them among its threads
TOKENS = 128  # whose scores are one product
PIECES = 8  # loops that run side by side, at most


def product_key_topk(
  queries: jax.Array, keys: jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array]:
  """See `op.product_key_topk`; of equal sums the lower slot leads."""
  tokens, heads, width = queries.shape
  tiles = -(-tokens // TOKENS)
  queries = jnp.pad(queries, ((0, tiles * TOKENS - tokens), (0, 0), (0, 0)))
  queries = queries.reshape(tiles, TOKENS, heads, 2, width // 2).transpose(2, 0, 3, 1, 4)
  jobs = queries.reshape(heads * tiles, 2, TOKENS, width // 2)
  head = np.repeat(np.arange(heads, dtype=np.int32), tiles)
  search = functools.partial(_tile, keys, top_k=top_k)
  with jax.enable_x64(True):
    cuts = np.array_split(np.arange(len(jobs)), min(len(jobs), os.cpu_count() or 1, PIECES))
    found = [jax.lax.map(search, (head[cut], jobs[cut[0] : cut[-1] + 1])) for cut in cuts]
  best, slots = (
    jnp.concatenate(each).reshape(heads, tiles, -1, top_k, LISTS // 2)
    .transpose(1, 2, 4, 0, 3).reshape(-1, heads, top_k)[:tokens]
    for each in zip(*found, strict=True)
  )  # fmt: skip
  return best, slots


def _tile(keys, job, *, top_k: int) -> tuple[jax.Array, jax.Array]:
  """The k best sums of a head for `TOKENS` tokens, and their slots, `[parts, k, LISTS / 2]`."""
  head, queries = job
  keys = jax.lax.dynamic_index_in_dim(keys, head, keepdims=False)
  scores = jnp.einsum("snd,std->nst", keys, queries, preferred_element_type=jnp.float32)
  part = LISTS // 2  # tokens: two lists each

  def some(at):
    return _pairs(jax.lax.dynamic_slice_in_dim(scores, at, part, axis=2), top_k)

  return jax.lax.map(some, jnp.arange(0, TOKENS, part, dtype=jnp.int32))


def _pairs(scores: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
  """From scores `[n, 2, t]` the k best sums and their slots, `[k, t]`."""
  n, _, tokens = scores.shape
  values, ids = unpack(largest_of(scores.reshape(n, 2 * tokens), top_k))
  (first, second), (i, j) = (jnp.moveaxis(a.reshape(top_k, 2, tokens), 1, 0) for a in (values, ids))
  pairs, a = [], 0
  while a < top_k:  # the pairs of `chunk.staircase`, rows of one length together
    length = top_k // (a + 1)
    end = top_k // length
    sums = first[a:end, None] + second[None, :length]
    slots = i[a:end, None] * n + j[None, :length]
    pairs.append(pack(sums, slots).reshape(-1, tokens))
    a = end
  return unpack(largest(jax.lax.optimization_barrier(jnp.concatenate(pairs)), top_k))


def largest_of(values: jax.Array, top_k: int) -> jax.Array:
  """The k largest of each column of values `[n, lists]`, packed with the rows they stand in."""
  n, lists = values.shape
  rows = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
  width = 1 << max(n // (8 * top_k), 1).bit_length() - 1
  if width == 1 or n % width:
    return largest(pack(values, rows), top_k)
  # They stand in the k groups of the largest maxima: those are found first.
  groups = n // width  # about 8 k; group g has the rows g, g + groups, ...
  maxima = jnp.max(values.reshape(width, groups, lists), axis=0)
  _, group = unpack(largest(pack(maxima, rows[:groups]), top_k))
  first = jnp.arange(0, n, groups, dtype=jnp.int32)
  rows = (first[:, None, None] + group[None]).reshape(-1, lists)
  values = jnp.take_along_axis(values, rows, axis=0, mode="promise_in_bounds")
  return largest(pack(values, rows), top_k)


def pack(values: jax.Array, ids: jax.Array) -> jax.Array:
  """int64 in the order of `values` (float32), of equal ones the lower of `ids` (int32) larger."""
  bits = _in_order(jax.lax.bitcast_convert_type(values, jnp.int32))
  return (bits.astype(jnp.int64) << 32) | (0x7FFFFFFF - ids.astype(jnp.int64))


def unpack(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What `pack` was given."""
  bits = _in_order((packed >> 32).astype(jnp.int32))
  ids = 0x7FFFFFFF - packed.astype(jnp.int32)  # the lower half
  return jax.lax.bitcast_convert_type(bits, jnp.float32), ids


def _in_order(bits: jax.Array) -> jax.Array:
  """Integers in the order of the floats whose bits they are, and back."""
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def largest(x: jax.Array, top_k: int) -> jax.Array:
  """The k largest of each column of x `[n, lists]` int64, descending.

  Runs of one number are merged to runs of k, and those to one run of the k largest.
  """
  length = 1 << (top_k - 1).bit_length()
  runs = 1 << (-(-len(x) // length) - 1).bit_length()
  x = jnp.pad(x, ((0, runs * length - len(x)), (0, 0)), constant_values=jnp.iinfo(x.dtype).min)
  x = x[:, None]  # [runs, length, lists]
  while x.shape[1] < length:
    x = _merged(x, keep_all=True)
  while len(x) > 1:
    x = _merged(x, keep_all=False)
  return x[0, :top_k]


def _merged(x: jax.Array, keep_all: bool) -> jax.Array:
  """Every two of the descending runs `[runs, length, lists]` as one: of twice the length, or of the
  same length and with the larger half of the numbers (a bitonic merge)."""
  runs, length, lists = x.shape
  quarters = 1 if length == 1 else 2  # of two runs: two steps are one pass over memory
  split = x.reshape(runs // 2, 2, quarters, length // quarters, lists)
  first = [split[:, 0, i] for i in range(quarters)]
  second = [split[:, 1, i, ::-1] for i in reversed(range(quarters))]
  parts = _steps(list(map(jnp.maximum, first, second)))
  if keep_all:
    parts += _steps(list(map(jnp.minimum, first, second)))
  distance = length // quarters // 2
  x = _pass(parts)
  while distance:
    count = 4 if distance > 1 else 2
    split = x.reshape(-1, count, 2 * distance // count, lists)
    x = _pass(_steps([split[:, i] for i in range(count)]))
    distance //= count
  return x.reshape(runs // 2, -1, lists)


def _pass(parts: list[jax.Array]) -> jax.Array:
  """The parts in one array. Without the barrier XLA would compute them again for each use."""
  return jax.lax.optimization_barrier(jnp.stack(parts, axis=1))


def _steps(parts: list[jax.Array]) -> list[jax.Array]:
  """Steps of a bitonic merge: the larger leads of each two parts that are half of all parts away
  from each other, then a quarter, ..."""
  distance = len(parts) // 2
  while distance:
    parts = [
      (jnp.minimum if i & distance else jnp.maximum)(part, parts[i ^ distance])
      for i, part in enumerate(parts)
    ]
    distance //= 2
  return parts
