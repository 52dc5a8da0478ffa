"""Sums of sorted reads on a TensorCore: the gradient of a table, row by row.

Vectors come by copies as the rows of a bag do (`tpu.stream`), in the order of the reads: each is
added to the sum of its row, and the next row begins where the number of the row changes. Rows are
complete one after the other, so eight of them leave together: a tile of HBM, one copy without gaps.
No scatter, and nothing of the size of reads x dv.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.embedding_bag import tpu
from pallas_kernels.embedding_bag.tpu_plan import LANES, SUBLANES, Plan, plan_for, round_up

STAGES = 4  # tiles of eight rows on their way out
READS = LANES  # of a bag of the ring


class Sequential(Plan):
  """A plan whose steps follow each other on one core: a row's reads may lie in two of them."""

  @property
  def grid(self) -> tuple[int, int, int]:
    return 1, self.width // (self.tiles * LANES), pl.cdiv(self.tokens, self.block)


def sum_sorted(
  token: jax.Array, weight: jax.Array, slot: jax.Array, vectors: jax.Array, first: jax.Array,
  size: int, *, interpret=None,
) -> jax.Array:  # fmt: skip
  """`rows.sum_sorted`, where the last slot of all need not be complete nor lie below `size`.

  Raises:
    NotImplementedError: dv is no multiple of 128.
  """
  tokens, width = vectors.shape
  if not size or not width:
    return jnp.zeros((size, width), jnp.float32)
  more, rows = -token.size % READS, -tokens % SUBLANES
  vectors = jnp.pad(vectors.astype(jnp.float32), ((0, rows), (0, 0)))
  pad = lambda a, b: jnp.pad(a, (0, more), constant_values=b).reshape(-1, READS)  # noqa: E731
  token = pad(token.astype(jnp.int32), 0)
  slot = jnp.concatenate([slot, jnp.broadcast_to(slot[-1:] + 1, more)]).reshape(-1, READS)
  plan = Sequential(**dataclasses.asdict(plan_for(vectors, token)))
  _, pieces, _ = plan.grid
  inputs = {
    "weights": pad(weight.astype(jnp.float32), 0),
    "slots": slot.astype(jnp.int32),
    "first": first.astype(jnp.float32).reshape(pieces, plan.tiles, LANES),
  }
  tiles = pl.cdiv(size, SUBLANES)
  out = (tiles, width // LANES, SUBLANES, LANES), pl.BlockSpec(memory_space=pltpu.HBM)
  specs = {"first": pl.BlockSpec((1, plan.tiles, LANES), lambda _, piece, step: (piece, 0, 0))}
  scratch = [
    pltpu.VMEM((plan.tiles, LANES), jnp.float32),
    pltpu.SMEM((1,), jnp.int32),
    pltpu.VMEM((STAGES, plan.tiles, SUBLANES, LANES), jnp.float32),
    pltpu.SemaphoreType.DMA((STAGES,)),
  ]
  summed = tpu.call(
    _kernel, plan, vectors, token, inputs, specs, out, scratch, interpret,
    cost=cost(token.size, size, width),
  )  # fmt: skip
  return summed.swapaxes(1, 2).reshape(tiles * SUBLANES, width)[:size]


def cost(reads: int, size: int, width: int) -> pl.CostEstimate:
  """A vector, a token, a weight and a slot for each read; and each row, once."""
  moved = reads * (4 * width + 12) + 4 * round_up(size, SUBLANES) * width
  return pl.CostEstimate(flops=2 * reads * width, transcendentals=0, bytes_accessed=moved)


@dataclasses.dataclass(frozen=True)
class _Out:
  """Rows on their way to HBM, eight of them at a time.

  Attributes:
    tiles: the output in HBM, `[tiles, C, 8, 128]`.   columns: which of C.
    stage: VMEM `[STAGES, columns, 8, 128]`.   leaving: a semaphore for each.
  """

  tiles: Any
  columns: Any
  stage: Any
  leaving: Any

  def put(self, row, y):
    """Writes `y [columns, 128]` as a row of a tile that has not left."""
    for c in range(y.shape[0]):
      self.stage[(row // SUBLANES) % STAGES, c, pl.ds(row % SUBLANES, 1)] = y[c : c + 1]

  def copy(self, tile):
    at = tile % STAGES
    to = self.tiles.at[tile, self.columns]
    return pltpu.make_async_copy(self.stage.at[at], to, self.leaving.at[at])

  def send(self, tile):
    @pl.when(tile < self.tiles.shape[0])
    def _():
      self.copy(tile).start()

  def finish(self, tile):
    """Sends the last tile, and waits until all have left."""
    self.send(tile)
    for at in (tile - back for back in range(STAGES)):

      @pl.when((at >= 0) & (at < self.tiles.shape[0]))
      def _(at=at):
        self.copy(at).wait()


def _kernel(plan: Plan, refs, out, ring, arrived, total, last, stage, leaving):
  """Sums the open row in `total`; `last` is its slot."""
  piece, step = pl.program_id(1), pl.program_id(2)
  columns = pl.ds(pl.multiple_of(piece * plan.tiles, plan.tiles), plan.tiles)
  out = _Out(out, columns, stage, leaving)

  @pl.when(step == 0)
  def _():
    total[...] = refs["first"][0]
    last[0] = 0
    out.put(0, refs["first"][0])

  def consume(t, slot, start):
    def add(group, carry):
      y, row = carry
      vectors = tpu.rows(plan, refs, ring, t, slot, group)
      start(group)
      at, tile = t * plan.stride + group * SUBLANES, row // SUBLANES
      begins = refs["slots"][at + SUBLANES - 1] // SUBLANES > tile  # the next one, then

      @pl.when(begins & (tile + 1 >= STAGES))
      def _():
        out.copy(tile + 1 - STAGES).wait()

      for j, vector in enumerate(vectors):
        same, row = refs["slots"][at + j] == row, refs["slots"][at + j]
        y = jnp.where(same, y, 0.0) + refs["weights"][at + j] * vector
        out.put(row, y)

      @pl.when(begins)
      def _():
        out.send(tile)

      return y, row

    total[...], last[0] = jax.lax.fori_loop(0, plan.groups, add, (total[...], last[0]))

  tpu.stream(plan, refs, ring, arrived, consume)

  @pl.when(step == pl.num_programs(2) - 1)
  def _():
    out.finish(last[0] // SUBLANES)
