"""How bags are cut into grid steps and copies on a TensorCore, and what they move."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
RING = 4 * 2**20  # bytes of VMEM for rows on their way
BAG = 2 * 2**20  # bytes of one bag in it, at most: wider rows are taken some columns at a time
DEPTH = 32  # bags in it, at most
BLOCK = 64  # tokens in a grid step, at most
IDS = 2**14  # ids in a grid step, at most: they lie in SMEM, with their weights, twice
LONGEST = IDS // SUBLANES  # ids in a bag


def round_up(n: int, to: int) -> int:
  return -(-n // to) * to


@dataclasses.dataclass(frozen=True)
class Plan:
  """How T bags of b rows of C x 128 values are cut.

  Attributes:
    word: what is copied: float32, bfloat16, or uint32 for pairs of bfloat16 rows.
    block: tokens in a grid step.
    tiles: of 128 columns, taken at a time.
    depth: bags in the ring.
  """

  tokens: int
  bag: int
  width: int
  word: jnp.dtype
  block: int
  tiles: int
  depth: int

  @property
  def grid(self) -> tuple[int, int, int]:
    """Halves of the tokens (for the two cores of a v5p), pieces of a row, steps."""
    steps = pl.cdiv(self.tokens, self.block)
    halves = 1 + (steps % 2 == 0)
    return halves, self.width // (self.tiles * LANES), steps // halves

  @property
  def groups(self) -> int:
    """Of eight rows, which are copied and summed together."""
    return pl.cdiv(self.bag, SUBLANES)

  @property
  def stride(self) -> int:
    """From one token's ids to the next one's, in SMEM."""
    return round_up(self.bag, LANES)

  def scalars(self, later: int = 0) -> pl.BlockSpec:
    """A number for each read of a block of tokens, that of this grid step or of a later one."""
    halves, _, steps = self.grid
    number = lambda h, _, s: (jnp.minimum(h * steps + s + later, halves * steps - 1),)  # noqa: E731
    return pl.BlockSpec((self.block * self.stride,), number, memory_space=pltpu.SMEM)

  def vectors(self) -> pl.BlockSpec:
    """A piece of `[T, dv]` for a block of tokens."""
    steps = self.grid[2]
    return pl.BlockSpec((self.block, self.tiles * LANES), lambda h, p, s: (h * steps + s, p))

  def dots(self) -> pl.BlockSpec:
    """What a piece adds to `[T, b]`, of `[pieces, T, stride]`."""
    steps = self.grid[2]
    return pl.BlockSpec((1, self.block, self.stride), lambda h, p, s: (p, h * steps + s, 0))


def plan_for(values: jax.Array, ids: jax.Array) -> Plan:
  """How `values` is read at `ids`, of which there are some.

  Raises:
    NotImplementedError: rows of this table cannot be copied one by one, or not enough at once.
  """
  (rows, *shape), (tokens, bag) = values.shape, ids.shape
  width = math.prod(shape)
  if values.dtype not in (jnp.float32, jnp.bfloat16):
    raise NotImplementedError(f"a table of {values.dtype}: rows are float32 or bfloat16")
  if bag > LONGEST:
    raise NotImplementedError(f"bags of {bag} ids: at most {LONGEST} fit SMEM")
  if len(shape) == 1 and (rows % SUBLANES or width % LANES):
    raise NotImplementedError(
      f"a table [{rows}, {width}]: XLA pads it to whole tiles, or stores it by columns; N must be "
      f"a multiple of {SUBLANES} and dv of {LANES}"
    )
  if len(shape) == 2 and (shape[1] != LANES or shape[0] % SUBLANES):
    raise NotImplementedError(f"rows of {shape}: they must be [C, {LANES}], C a multiple of 8")
  pairs = len(shape) == 1 and values.dtype == jnp.bfloat16
  word = jnp.dtype(jnp.uint32) if pairs else values.dtype
  tall = max(1, round_up(bag, SUBLANES)) * LANES * word.itemsize
  least = 1 if len(shape) == 1 else SUBLANES
  pieces = [n for n in range(least, width // LANES + 1, least) if width % (n * LANES) == 0]
  tiles = max([n for n in pieces if tall * n <= BAG], default=least)
  if tall * tiles > RING:
    raise NotImplementedError(f"bags of {bag} rows {shape}: no two of them fit VMEM")
  block = min(BLOCK, max(SUBLANES, IDS // round_up(bag, LANES) // SUBLANES * SUBLANES), tokens)
  depth = max(2, min(DEPTH, RING // (tall * tiles), block))
  return Plan(tokens, bag, width, word, block, tiles, depth)


def cost(values: jax.Array, ids: jax.Array) -> pl.CostEstimate:
  """What `embedding_bag` and `dot_bag` move: each row that is read (of a bfloat16 `[N, dv]`, with
  the other one of its pair), the ids, and float32 `[T, b]` and `[T, dv]`: operand and output."""
  plan = plan_for(values, ids)
  reads = plan.tokens * plan.groups * SUBLANES
  moved = reads * (plan.width * plan.word.itemsize + 4) + 4 * plan.tokens * (plan.bag + plan.width)
  return pl.CostEstimate(flops=2 * reads * plan.width, transcendentals=0, bytes_accessed=moved)
