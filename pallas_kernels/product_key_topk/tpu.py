"""A kernel for a TensorCore: scores, both searches and the staircase of 128 tokens in VMEM.

Tokens lie in lanes, so that a list of scores is a list of registers and comparing two of its
entries is one instruction for 8 lists x 128 tokens. Keys are taken 8 K at a time, K >= k a power of
two: their scores, from the matrix unit, are 8 lists of K, which a bitonic network sorts and merges
with the 8 best lists so far, keeping K of each pair. Three more merges leave the K best of a half.
The staircase is the same again: for one rank in the first half, sums over ranks in the second are a
sorted list. No score ever reaches HBM.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import compat

LANES, SUBLANES = 128, 8
STAGED = 16  # entries that are sorted stage by stage: with their ids, half of the registers
MOST = 128  # entries of a list: the network is unrolled
KEYS = 24 * 2**20  # bytes of VMEM for one head's keys, of which there are two buffers

List = tuple[jax.Array, jax.Array]  # scores and ids, `[K, 8, 128]`: 8 lists for each of 128 tokens


def _length(top_k: int) -> int:
  """K: the power of two that k entries fit in, whole registers at least."""
  return max(SUBLANES, 1 << (top_k - 1).bit_length())


def _padded(n: int, top_k: int) -> int:
  return -(-n // (SUBLANES * _length(top_k))) * SUBLANES * _length(top_k)


def cost(queries: jax.Array, keys: jax.Array, top_k: int) -> pl.CostEstimate:
  """Queries, keys and results once each, and the products."""
  (tokens, heads, width), n = queries.shape, _padded(keys.shape[2], top_k)
  size = jnp.result_type(queries, keys).itemsize
  moved = (tokens * heads * width + heads * n * width) * size + 8 * tokens * heads * top_k
  return pl.CostEstimate(
    flops=2 * tokens * heads * n * width, transcendentals=0, bytes_accessed=moved
  )


def _ordered(a: List, b: List) -> tuple[List, List]:
  """The larger and the smaller, entry by entry."""
  swap = a[0] < b[0]
  larger = jnp.where(swap, b[0], a[0]), jnp.where(swap, b[1], a[1])
  return larger, (jnp.where(swap, a[0], b[0]), jnp.where(swap, a[1], b[1]))


def _part(x: List, start: int, stop: int) -> List:
  return x[0][start:stop], x[1][start:stop]


def _join(*lists: List) -> List:
  scores, ids = zip(*lists, strict=True)
  return jnp.concatenate(scores, axis=0), jnp.concatenate(ids, axis=0)


def _backward(x: jax.Array, axis: int) -> jax.Array:
  cuts = [jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in range(x.shape[axis])]
  return jnp.concatenate(cuts[::-1], axis=axis)


def _staged(x: List, size: int, turn: bool = False) -> List:
  """Sorts blocks of `size` entries, which fall and then rise; with `turn`, fall twice."""
  shape = x[0].shape
  while size > 1:
    scores, ids = (array.reshape(-1, 2, size // 2, *shape[1:]) for array in x)
    second = scores[:, 1], ids[:, 1]
    if turn:
      second = _backward(second[0], 1), _backward(second[1], 1)
    larger, smaller = _ordered((scores[:, 0], ids[:, 0]), second)
    scores = jnp.stack([larger[0], smaller[0]], axis=1).reshape(shape)
    x = scores, jnp.stack([larger[1], smaller[1]], axis=1).reshape(shape)
    size, turn = size // 2, False
  return x


def _clean(x: List) -> List:
  """Sorts entries that fall and then rise.

  A half is done before the other is begun: so more of it stays in registers.
  """
  length = x[0].shape[0]
  if length <= STAGED:
    return _staged(x, length)
  halves = _ordered(_part(x, 0, length // 2), _part(x, length // 2, length))
  return _join(*map(_clean, halves))


def _turned(x: List) -> List:
  return _backward(x[0], 0), _backward(x[1], 0)


def _sort(x: List) -> List:
  length = x[0].shape[0]
  if length <= STAGED:
    for stage in range(1, length.bit_length()):
      x = _staged(x, 2**stage, turn=True)
    return x
  first, second = _sort(_part(x, 0, length // 2)), _sort(_part(x, length // 2, length))
  return _clean(_join(first, _turned(second)))


def _merge(a: List, b: List) -> List:
  """The K best of two sorted lists, sorted."""
  return _clean(_ordered(a, _turned(b))[0])


def _across(x: List) -> List:
  """The K best of all eight lists, in the place of each.

  Where scores tie, each place finds its own: that of the first is everybody's.
  """

  def fold(i, x):
    by = SUBLANES >> (i + 1)
    return _merge(x, (pltpu.roll(x[0], by, 1), pltpu.roll(x[1], by, 1)))

  scores, ids = jax.lax.fori_loop(0, 3, fold, x)
  shape = scores.shape
  return jnp.broadcast_to(scores[:, :1], shape), jnp.broadcast_to(ids[:, :1], shape)


def _rank(shape, axis: int) -> jax.Array:
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _diagonal(x: jax.Array) -> jax.Array:
  """`y[s] = x[s, s]`, of `[8, 8, 128]`."""
  y = x[0]
  for s in range(1, SUBLANES):
    y = jnp.where(_rank(y.shape, 0) == s, x[s], y)
  return y


def _half(keys, queries, half, n: int, length: int) -> List:
  """The K best keys of a half, in every list; keys `[n, d]` and queries `[128, d]` of VMEM."""
  shape, many = (length, SUBLANES, LANES), length * SUBLANES
  exact = keys.dtype == jnp.float32  # products of bfloat16 are exact anyway
  precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT

  def group(g, best):
    block = keys[half, pl.ds(pl.multiple_of(g * many, many), many)]
    scores = jax.lax.dot_general(
      block, queries[half], (((1,), (1,)), ((), ())),
      precision=precision, preferred_element_type=jnp.float32,
    )  # fmt: skip
    ids = g * many + _rank(shape, 0) * SUBLANES + _rank(shape, 1)
    scores = jnp.where(ids < n, scores.reshape(shape), -jnp.inf)
    return _merge(best, _sort((scores, jnp.minimum(ids, n - 1))))

  nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
  return _across(jax.lax.fori_loop(0, keys.shape[1] // many, group, nothing))


def _kernel(n, top_k, queries, keys, scores, ids, half_scores, half_ids):
  length = half_scores.shape[1]
  shape = (length, SUBLANES, LANES)

  def search(half, _):
    half_scores[half], half_ids[half] = _half(keys, queries, half, n, length)

  jax.lax.fori_loop(0, 2, search, None)

  def stairs(g, best):
    first = pl.ds(g * SUBLANES, SUBLANES)
    sums = _diagonal(half_scores[0, first])[None] + half_scores[1]
    rows = _diagonal(half_ids[0, first])[None] * n + half_ids[1]
    can_win = (g * SUBLANES + _rank(shape, 1) + 1) * (_rank(shape, 0) + 1) <= top_k
    return _merge(best, (jnp.where(can_win, sums, -jnp.inf), rows))

  nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
  groups = pl.cdiv(top_k, SUBLANES)
  best = _across(jax.lax.fori_loop(0, groups, stairs, nothing))
  for g in range(groups):
    tile = slice(g * SUBLANES, (g + 1) * SUBLANES)
    scores[tile], ids[tile] = (_diagonal(array[tile]) for array in best)


def product_key_topk(
  queries: jax.Array, keys: jax.Array, top_k: int, *, interpret=None
) -> tuple[jax.Array, jax.Array]:
  """See `op.product_key_topk`.

  Args:
    interpret: of `pallas_call`; None interprets on a CPU.

  Raises:
    NotImplementedError: too many entries, or keys that do not fit VMEM.
  """
  (tokens, heads, width), n = queries.shape, keys.shape[2]
  length, padded = _length(top_k), _padded(n, top_k)
  dtype = jnp.result_type(queries, keys)
  held = 2 * padded * -(-(width // 2) // LANES) * LANES * dtype.itemsize
  if length > MOST:
    raise NotImplementedError(f"top_k={top_k}: at most {MOST}")
  if held > KEYS:
    raise NotImplementedError(f"{held} bytes of keys of a head: at most {KEYS} fit VMEM")
  if not queries.size:
    return jnp.zeros((tokens, heads, top_k)), jnp.zeros((tokens, heads, top_k), jnp.int32)
  parts = jnp.moveaxis(queries.astype(dtype).reshape(tokens, heads, 2, width // 2), 0, 2)
  rows = jnp.pad(keys.astype(dtype), ((0, 0), (0, 0), (0, padded - n), (0, 0)))
  tall = -(-top_k // SUBLANES) * SUBLANES
  out = pl.BlockSpec((None, tall, LANES), lambda head, block: (head, 0, block))
  scores, ids = pl.pallas_call(
    functools.partial(_kernel, n, top_k),
    grid=(heads, pl.cdiv(tokens, LANES)),
    in_specs=[
      pl.BlockSpec((None, 2, LANES, width // 2), lambda head, block: (head, 0, block, 0)),
      pl.BlockSpec((None, 2, padded, width // 2), lambda head, block: (head, 0, 0, 0)),
    ],
    out_specs=[out, out],
    out_shape=[
      jax.ShapeDtypeStruct((heads, tall, tokens), dtype) for dtype in (jnp.float32, jnp.int32)
    ],
    scratch_shapes=[
      pltpu.VMEM((2, length, SUBLANES, LANES), dtype) for dtype in (jnp.float32, jnp.int32)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=2 * held + 2**23
    ),
    cost_estimate=cost(queries, keys, top_k),
    interpret=compat.interpret(interpret),
  )(parts, rows)
  return jnp.moveaxis(scores[:, :top_k], 2, 0), jnp.moveaxis(ids[:, :top_k], 2, 0)
