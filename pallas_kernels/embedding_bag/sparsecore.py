"""TPU SparseCores: every vector subcore gathers rows into its own memory and adds them up there.

Tokens go in blocks of 8 to the subcores (16 on each SparseCore). A subcore fetches the ids of a
block, then rows by indirect gathers of 16, into one half of a ring while it works on the other. A
row stands in memory as it does for the TensorCore (a layout of their own would make a copy of the
table), so dv must be a multiple of 128; wide rows are taken 1024 columns at a time. Gathers move
words of 32 bits, in which a bfloat16 table keeps two rows: both are read and one is used, so such
a table costs the bytes of a float32 one.

Opt-in (`implementation="sparsecore"`), never the default. A subcore reads its own memory by 8 lanes
of 32 bits (16 on tpu7x), so all those of a v6e read 1 KiB a cycle: at any clock under 1.6 GHz less
than the chip's memory delivers, where the TensorCore's kernel may have all of it; bfloat16 pays
double. What it is for: rows too short for the TensorCore's single copies, and programs whose
TensorCore has something else to do. No compiler shows when that is: measure before you choose it.

An id that is no row reads some row with weight 0: that row must be finite.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.embedding_bag.subcores import Cores, cores

TOKENS = 8  # of a block: the rows of a tile of the output
COLUMNS = 1024  # that a subcore takes at once, at most
SLOTS = 2  # of the ring
LARGEST = 2**34  # bytes of a table: the compiler refuses more


def embedding_bag(values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """See `op.embedding_bag`.

  Raises:
    NotImplementedError: the chip has no SparseCore, or the table's dtype or shape has no kernel.
  """
  return run_bag(cores(), values, ids, weights)


def dot_bag(values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """See `op.dot_bag`; raises as `embedding_bag` does."""
  return run_dots(cores(), values, ids, vectors)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How a bag is cut.

  Attributes:
    tokens, bag: T and b, rounded up.   each: columns at once.   gather: rows of one copy.
    columns: dv.   packed: whether a word holds two rows.   workers: subcores in all.
  """

  tokens: int
  bag: int
  columns: int
  each: int
  gather: int
  packed: bool
  workers: int

  def cost(self) -> pl.CostEstimate:
    read = self.tokens * self.bag * self.columns
    rest = self.tokens * (self.columns + 3 * self.bag)
    return pl.CostEstimate(flops=2 * read, bytes_accessed=4 * (read + rest), transcendentals=0)


def _plan(on: Cores, values: jax.Array, ids: jax.Array) -> _Plan:
  rows, columns = values.shape
  if values.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"SparseCores take float32 and bfloat16 tables; got {values.dtype}")
  packed = values.dtype == jnp.bfloat16
  if columns % 128 or (packed and rows % 2):
    wanted = "a multiple of 128 columns" + ", and of 2 rows in bfloat16" * packed
    raise NotImplementedError(f"SparseCores take tables of {wanted}; got {list(values.shape)}")
  if values.size * values.dtype.itemsize > LARGEST:
    raise NotImplementedError(f"SparseCores address 16 GiB; values {list(values.shape)} has more")
  tiles = columns // 128
  each = 128 * max(n for n in range(1, COLUMNS // 128 + 1) if tiles % n == 0)
  tokens, bag = ids.shape
  gather = 16 if on.lanes == 16 or pl.cdiv(bag, 8) % 2 == 0 else 8
  return _Plan(
    pl.cdiv(tokens, TOKENS) * TOKENS, pl.cdiv(bag, gather) * gather, columns, each, gather, packed,
    on.cores * on.subcores,
  )  # fmt: skip


def _reads(plan: _Plan, ids: jax.Array, rows: int) -> list[jax.Array]:
  """For each read, flat: its row of words, and where in the words it begins if they hold two rows.

  Reads that are padding are spread over the table: one row that all ask for would be a hot one.
  """
  ids = _fill(plan, jnp.where((ids >= 0) & (ids < rows), ids, -1).astype(jnp.int32), -1)
  row = jnp.where(ids < 0, jax.lax.iota(jnp.int32, ids.size) % rows, ids)
  return [row // 2, row % 2 * 16] if plan.packed else [row]


def _fill(plan: _Plan, array: jax.Array, value) -> jax.Array:
  """`[T, b]` up to whole blocks and gathers, flat."""
  tokens, bag = array.shape
  more = ((0, plan.tokens - tokens), (0, plan.bag - bag))
  return jnp.pad(array, more, constant_values=value).reshape(-1)


def _splats(on: Cores, ref, first, count: int) -> list[jax.Array]:
  """`ref[first + i]` in all lanes, for each of `count`."""
  vectors = [ref[pl.ds(first + i, on.lanes)] for i in range(0, count, on.lanes)]
  return [jax.lax.broadcast(vector[i], (on.lanes,)) for vector in vectors for i in range(on.lanes)]


def _widen(word: jax.Array, begin: jax.Array | None) -> jax.Array:
  """Float32 from a word, or from the bfloat16 that begins at one of its bits."""
  if begin is None:
    return word
  half = jax.lax.shift_right_logical(word, begin)
  high = jax.lax.shift_left(half, jax.lax.broadcast(jnp.int32(16), word.shape))
  return jax.lax.bitcast_convert_type(high, jnp.float32)


def _each_block(plan: _Plan, worker, body: Callable) -> None:
  """Calls `body(block, reads)` for a worker's blocks; `reads` is where a block's are, flat."""
  mine, size = pl.cdiv(plan.tokens // TOKENS, plan.workers), TOKENS * plan.bag

  @pl.loop(0, mine)
  def _(index):
    block = worker * mine + index

    @pl.when(block < plan.tokens // TOKENS)
    def _():
      body(block, pl.ds(pl.multiple_of(block * size, size), size))


def _each_part(plan: _Plan, body: Callable) -> None:
  """Calls `body(part, columns)` for the parts of a row that are worked on one after another."""

  @pl.loop(0, plan.columns // plan.each)
  def _(part):
    body(part, pl.ds(pl.multiple_of(part * plan.each, plan.each), plan.each))


def _stream(on: Cores, plan: _Plan, table, rows, columns, ring, done, use: Callable) -> None:
  """Calls `use(first, slot)` for each gather of a block's reads, while the next is under way."""
  count = TOKENS * plan.bag // plan.gather

  def copy(index):
    part, slot = rows.at[pl.ds(index * plan.gather, plan.gather)], index % SLOTS
    return on.gather(table, part, columns, ring.at[slot], done.at[slot])

  copy(0).start()

  @pl.loop(0, count)
  def _(index):
    @pl.when(index + 1 < count)
    def _():
      copy(index + 1).start()

    copy(index).wait()
    use(index * plan.gather, index % SLOTS)


def _scratch(plan: _Plan) -> list:
  """Of both kernels: ids (and halves), a number for each read, a block of vectors, the ring."""
  word = jnp.int32 if plan.packed else jnp.float32
  reads = (TOKENS * plan.bag,)
  return [
    *[pltpu.VMEM(reads, jnp.int32)] * (1 + plan.packed),
    pltpu.VMEM(reads, jnp.float32),
    pltpu.VMEM((TOKENS, plan.each), jnp.float32),
    pltpu.VMEM((SLOTS, plan.gather, plan.each), word),
    pltpu.SemaphoreType.DMA((SLOTS,)),
  ]


def run_bag(on: Cores, values: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
  """`embedding_bag` on these cores."""
  plan, tokens = _plan(on, values, ids), ids.shape[0]
  if 0 in (*values.shape, *ids.shape):
    return jnp.zeros((tokens, plan.columns), jnp.float32)

  def embedding_bag(worker, table, *refs):
    n = 2 + plan.packed
    given, out, (*reads, y, ring, done) = refs[:n], refs[n], refs[n + 1 :]
    rows, begins, weights = reads[0], reads[1] if plan.packed else None, reads[-1]

    def use(first, slot):
      token, fresh = first // plan.bag, first % plan.bag == 0
      weight = _splats(on, weights, first, plan.gather)
      begin = _splats(on, begins, first, plan.gather) if plan.packed else [None] * plan.gather

      def add(column, carry):
        lanes = pl.ds(column, on.lanes)
        total = jnp.where(fresh, 0.0, y[token, lanes])
        for i in range(plan.gather):
          total = total + weight[i] * _widen(ring[slot, i, lanes], begin[i])
        y[token, lanes] = total
        return carry

      on.loop(plan.each, add, ())

    def block(index, mine):
      for source, target in zip(given, reads, strict=True):
        pltpu.sync_copy(source.at[mine], target)

      def part(_, columns):
        _stream(on, plan, table, rows, columns, ring, done, use)
        pltpu.sync_copy(y, out.at[pl.ds(pl.multiple_of(index * TOKENS, TOKENS), TOKENS), columns])

      _each_part(plan, part)

    _each_block(plan, worker, block)

  meant = (ids >= 0) & (ids < values.shape[0])
  weights = _fill(plan, jnp.where(meant, weights, 0).astype(jnp.float32), 0)
  out = jax.ShapeDtypeStruct((plan.tokens, plan.columns), jnp.float32)
  arrays = on.words(values), *_reads(plan, ids, values.shape[0]), weights
  return on.launch(embedding_bag, out, _scratch(plan), plan.cost(), *arrays)[:tokens]


def run_dots(on: Cores, values: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
  """`dot_bag` on these cores."""
  plan, (tokens, bag) = _plan(on, values, ids), ids.shape
  if 0 in (*values.shape, *ids.shape):
    return jnp.zeros((tokens, bag), jnp.float32)

  def dot_bag(worker, table, *refs):
    n = 1 + plan.packed
    given, vectors, out, (*reads, dots, g, ring, done) = (
      refs[:n],
      refs[n],
      refs[n + 1],
      refs[n + 2 :],
    )
    rows, begins = reads[0], reads[1] if plan.packed else None
    lane = jax.lax.iota(jnp.int32, on.lanes)

    def sums(first, slot):
      """The products of each row of a gather with its token's vector, summed."""
      begin = _splats(on, begins, first, plan.gather) if plan.packed else [None] * plan.gather

      def add(column, totals):
        lanes = pl.ds(column, on.lanes)
        vector = g[first // plan.bag, lanes]
        return tuple(
          total + vector * _widen(ring[slot, i, lanes], begin[i]) for i, total in enumerate(totals)
        )

      zero = jax.lax.broadcast(jnp.float32(0), (on.lanes,))
      return [jnp.sum(total) for total in on.loop(plan.each, add, (zero,) * plan.gather)]

    def block(index, mine):
      for source, target in zip(given, reads, strict=True):
        pltpu.sync_copy(source.at[mine], target)

      def part(number, columns):
        def use(first, slot):
          found = sums(first, slot)
          for i in range(0, plan.gather, on.lanes):
            lanes = pl.ds(first + i, on.lanes)
            total = jnp.where(number == 0, 0.0, dots[lanes])
            for j in range(on.lanes):
              total = total + jnp.where(lane == j, jax.lax.broadcast(found[i + j], lane.shape), 0.0)
            dots[lanes] = total

        token = pl.ds(pl.multiple_of(index * TOKENS, TOKENS), TOKENS)
        pltpu.sync_copy(vectors.at[token, columns], g)
        _stream(on, plan, table, rows, columns, ring, done, use)

      _each_part(plan, part)
      pltpu.sync_copy(dots, out.at[mine])

    _each_block(plan, worker, block)

  more = ((0, plan.tokens - tokens), (0, 0))
  vectors = jnp.pad(vectors.astype(jnp.float32), more)
  out = jax.ShapeDtypeStruct((plan.tokens * plan.bag,), jnp.float32)
  arrays = on.words(values), *_reads(plan, ids, values.shape[0]), vectors
  dots = on.launch(dot_bag, out, _scratch(plan), plan.cost(), *arrays)
  meant = (ids >= 0) & (ids < values.shape[0])
  return jnp.where(meant, dots.reshape(plan.tokens, plan.bag)[:tokens, :bag], 0)
