"""Kernels for a TensorCore: the table stays in HBM, and every row that is read comes by a copy.

While a bag that has arrived is summed on the vector unit, in float32, the copies of the next ones
are under way: bandwidth x latency, 0.8 MB on v5e and 3 MB on tpu7x, must be.

XLA tiles a table `[N, dv]` by 8 rows x 128 columns, so a float32 row is C = dv / 128 pieces of 512
bytes, one strided copy. In bfloat16, rows 2i and 2i + 1 share 32-bit words: the pair is copied and
the row shifted out of it, so that a bfloat16 row moves as many bytes as a float32 row. A table
`[N, C, 128]` has its rows in one piece each, in either type.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import compat
from pallas_kernels.embedding_bag.tpu_plan import LANES, SUBLANES, Plan, cost, plan_for, round_up


def stream(plan: Plan, refs, ring, arrived, consume) -> None:
  """Calls `consume(t, slot, start)` for each token of this step, whose rows lie in `ring[slot]`.

  Args:
    refs: "ids" and "following", SMEM `[block * stride]`: rows for the tokens of this step and of
      the next; "values": the table in HBM.
    ring: VMEM `[depth, b, tiles, 128]`.   arrived: a semaphore a slot.
    consume: calls `start(group)` for each group of rows, after it has read that of its own bag.
  """
  half, piece, step = (pl.program_id(axis) for axis in range(3))
  steps = pl.num_programs(2)
  first = (half * steps + step) * plan.block
  left = jnp.minimum((half + 1) * steps * plan.block, plan.tokens) - first  # tokens of this half
  ahead = plan.depth - 1
  columns = pl.ds(pl.multiple_of(piece * plan.tiles, plan.tiles), plan.tiles)
  table = refs["values"]
  if plan.word != table.dtype:
    table = table.bitcast(plan.word)  # tiles are the same

  def row(r):
    if len(table.shape) == 3:
      return table.at[r, columns]
    high = table.shape[2].bit_length() - 1  # a tile holds 2^high rows, or pairs
    return table.at[r >> high, columns, r & (2**high - 1)]

  def start(ids, t, slot, group):
    for j in range(SUBLANES):
      r = ids[t * plan.stride + group * SUBLANES + j]
      here = ring.at[slot, group * SUBLANES + j]
      pltpu.make_async_copy(row(r), here, arrived.at[slot]).start()

  @pl.when(step == 0)
  def _():
    def bag(t, _):
      jax.lax.fori_loop(0, plan.groups, lambda g, _: start(refs["ids"], t, t, g), None)

    jax.lax.fori_loop(0, jnp.minimum(ahead, left), bag, None)

  def token(t, _):
    slot = (step * plan.block + t) % plan.depth
    free = (slot + ahead) % plan.depth  # of the bag before this one
    next_t = t + ahead
    pltpu.make_async_copy(ring.at[slot], ring.at[slot], arrived.at[slot]).wait()  # as many bytes

    @pl.when((next_t < left) & (next_t < plan.block))
    def _():
      consume(t, slot, lambda group: start(refs["ids"], next_t, free, group))

    @pl.when((next_t < left) & (next_t >= plan.block))
    def _():
      consume(t, slot, lambda g: start(refs["following"], next_t - plan.block, free, g))

    @pl.when(next_t >= left)
    def _():
      consume(t, slot, lambda group: None)

  jax.lax.fori_loop(0, jnp.minimum(plan.block, left), token, None)


def rows(plan: Plan, refs, ring, t, slot, group) -> list[jax.Array]:
  """Eight rows of a bag, `[tiles, 128]` float32 each."""
  loaded = [ring[slot, group * SUBLANES + j] for j in range(SUBLANES)]
  if plan.word != jnp.uint32:
    return [row.astype(jnp.float32) for row in loaded]
  first = t * plan.stride + group * SUBLANES
  shifts = [refs["shifts"][first + j].astype(jnp.uint32) for j in range(SUBLANES)]
  words = [
    (row << shift) & jnp.uint32(0xFFFF0000) for row, shift in zip(loaded, shifts, strict=True)
  ]
  return [jax.lax.bitcast_convert_type(word, jnp.float32) for word in words]


def _bag_kernel(plan: Plan, refs, out, ring, arrived):
  def consume(t, slot, start):
    def add(group, y):
      loaded = rows(plan, refs, ring, t, slot, group)
      start(group)
      first = t * plan.stride + group * SUBLANES
      return y + sum(refs["weights"][first + j] * row for j, row in enumerate(loaded))

    y = jax.lax.fori_loop(0, plan.groups, add, jnp.zeros((plan.tiles, LANES), jnp.float32))
    out[pl.ds(t, 1)] = jnp.concatenate([y[c : c + 1] for c in range(plan.tiles)], axis=1)

  stream(plan, refs, ring, arrived, consume)


def _dot_kernel(plan: Plan, refs, out, ring, arrived, product):
  if plan.groups * SUBLANES < plan.stride:
    product[...] = jnp.zeros_like(product)

  def consume(t, slot, start):
    vector = refs["vectors"][pl.ds(t, 1)]
    pieces = [vector[:, at : at + LANES] for at in range(0, plan.tiles * LANES, LANES)]
    vector = jnp.concatenate(pieces, axis=0)

    def dot(group, _):
      loaded = rows(plan, refs, ring, t, slot, group)
      start(group)
      sums = [jnp.sum(row * vector, axis=0, keepdims=True) for row in loaded]
      at = pl.multiple_of(group * SUBLANES, SUBLANES)
      product[pl.ds(at, SUBLANES)] = jnp.concatenate(sums, axis=0)

    jax.lax.fori_loop(0, plan.groups, dot, None)
    tiles = [product[pl.ds(at, LANES)].T for at in range(0, plan.stride, LANES)]
    lying = [jnp.sum(tile, axis=0, keepdims=True) for tile in tiles]
    out[0, pl.ds(t, 1)] = jnp.concatenate(lying, axis=1)

  stream(plan, refs, ring, arrived, consume)


def _flat(plan: Plan, array: jax.Array) -> jax.Array:
  """`[T, b]` as `[blocks * block * stride]`, zeros added."""
  tokens = round_up(plan.tokens, plan.block)
  padded = jnp.pad(array, ((0, tokens - plan.tokens), (0, plan.stride - array.shape[1])))
  return padded.reshape(-1)


def _tiled(values: jax.Array, interpret) -> jax.Array:
  """A table `[N, dv]` as it lies in HBM, tile by tile: `[N / 8, C, 8, 128]`; XLA copies nothing."""
  high = SUBLANES
  if interpret and values.dtype == jnp.bfloat16:  # it knows no bitcast of a reference
    pairs = values.reshape(-1, 2, values.shape[1]).swapaxes(1, 2)
    values, high = jax.lax.bitcast_convert_type(pairs, jnp.uint32), SUBLANES // 2
  return values.reshape(-1, high, values.shape[1] // LANES, LANES).swapaxes(1, 2)


def call(
  kernel, plan: Plan, values, ids, inputs, specs, out, scratch, interpret, *, cost: pl.CostEstimate
):  # fmt: skip
  """Runs a kernel.

  Args:
    ids: `[T, b]`, all of which can be read.
    inputs: the other operands, by name.   specs: of those that are not `plan.scalars()`.
    out: shape and spec of the output.   scratch: besides the ring.
  """
  interpret = compat.interpret(interpret)
  if plan.word == jnp.uint32:
    inputs, copied = inputs | {"shifts": 16 * (1 - (ids & 1))}, ids >> 1
  else:
    copied = ids
  inputs |= {"ids": copied, "following": copied}
  flat = {name: _flat(plan, array) for name, array in inputs.items() if name not in specs}
  specs = {name: plan.scalars() for name in flat} | specs
  specs |= {"following": plan.scalars(1), "values": pl.BlockSpec(memory_space=pltpu.HBM)}
  table = _tiled(values, interpret) if values.ndim == 2 else values
  ring = (plan.depth, plan.groups * SUBLANES, plan.tiles, LANES)
  return pl.pallas_call(
    functools.partial(kernel, plan),
    grid=plan.grid,
    in_specs=[specs],
    out_specs=out[1],
    out_shape=jax.ShapeDtypeStruct(out[0], jnp.float32),
    scratch_shapes=[
      pltpu.VMEM(ring, plan.word),
      pltpu.SemaphoreType.DMA((plan.depth,)),
      *scratch,
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary"), disable_bounds_checks=True
    ),
    cost_estimate=cost,
    interpret=interpret,
  )(inputs | flat | {"values": table})


def _readable(plan: Plan, ids: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
  """Ids that can be read, in bags of whole groups, and which of them were meant.

  Padding reads a row here and a row there: one that everybody reads would be slow.
  """
  ids = jnp.pad(ids.astype(jnp.int32), ((0, 0), (0, -plan.bag % SUBLANES)), constant_values=rows)
  meant = (ids >= 0) & (ids < rows)
  anywhere = jnp.arange(ids.size, dtype=jnp.int32).reshape(ids.shape) % rows
  return jnp.where(meant, ids, anywhere), meant


def embedding_bag(
  values: jax.Array, ids: jax.Array, weights: jax.Array, *, interpret=None
) -> jax.Array:
  """See `op.embedding_bag`.

  Args:
    values: `[N, dv]` or `[N, dv / 128, 128]`.
    interpret: of `pallas_call`; None interprets on a CPU.

  Raises:
    NotImplementedError: the rows of this table cannot be copied one by one.
  """
  if not ids.size or not values.size:
    return jnp.zeros((ids.shape[0], math.prod(values.shape[1:])), jnp.float32)
  plan = plan_for(values, ids)
  ids, meant = _readable(plan, ids, values.shape[0])
  weights = jnp.pad(weights.astype(jnp.float32), ((0, 0), (0, -plan.bag % SUBLANES)))
  out = (plan.tokens, plan.width), plan.vectors()
  inputs = {"weights": jnp.where(meant, weights, 0)}
  return call(
    _bag_kernel, plan, values, ids, inputs, {}, out, [], interpret, cost=cost(values, ids)
  )


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array, *, interpret=None) -> jax.Array:
  """See `op.dot_bag`, and `embedding_bag` here."""
  if not ids.size or not values.size:
    return jnp.zeros(ids.shape, jnp.float32)
  plan = plan_for(values, ids)
  ids, meant = _readable(plan, ids, values.shape[0])
  inputs, specs = {"vectors": vectors.astype(jnp.float32)}, {"vectors": plan.vectors()}
  out = (plan.grid[1], plan.tokens, plan.stride), plan.dots()
  scratch = [pltpu.VMEM((plan.stride, LANES), jnp.float32)]
  dots = call(
    _dot_kernel, plan, values, ids, inputs, specs, out, scratch, interpret, cost=cost(values, ids)
  )
  return jnp.where(meant, jnp.sum(dots, axis=0)[:, : meant.shape[1]], 0)[:, : plan.bag]
