"""The passive T-Maze (Bakker 2001; Ni et al. 2023, arXiv 2307.03864), as observations and what its
oracle does, in the form of "ELMUR" (Cherepanov et al. 2025, arXiv 2510.07151).

A hint g = +1 or -1 is seen at t = 0, then a corridor of L cells, then the junction, where the way
is up for g = 1 and down for -1. An observation is `(y, hint, flag, noise)`: y is 0 on this way, the
hint 0 after t = 0, the flag 1 at the junction, noise drawn from -1, 0, 1 at every step. Actions: 0
right, 1 up, 2 left, 3 down; the target is right until the junction. One bit, kept for L steps. In
the active form the way begins one cell past the hint: left at t = 0, the hint at t = 1, then right.

Every observation is a function of seed, split, index and t: `chunk` makes any part of a corridor of
any length.
"""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks.task import Batch, Task, field

RIGHT, UP, LEFT, DOWN = range(4)


@dataclasses.dataclass(frozen=True)
class TMaze(Task):
  """See the module.

  Attributes:
    length: steps, L + 1; if active, L + 2; the last is at the junction.
    noise: the fourth channel is drawn; False: 0.
    last: so many of the last steps count in mask and loss; None: all.
    active: the hint must be fetched.

  `Batch.inputs` are `[B, T, 4] float32`, targets actions. Hints of examples 2 i and 2 i + 1 differ.
  Meta: `hint [B]`.
  """

  length: int = 30
  noise: bool = True
  last: int | None = None
  active: bool = False
  vocab: int = 4
  number = 6
  input_form = "vectors"

  def __post_init__(self):
    if self.length < 2 + self.active:
      raise ValueError(
        f"length={self.length} must be at least {2 + self.active}: the hint, and the junction"
      )
    if self.last is not None:
      checks.positive(last=self.last)

  @property
  def chance(self) -> float:
    return 0.5

  @property
  def floor(self) -> float:
    return 0.5

  @property
  def state_bits(self) -> float:
    return 1.0

  def sample(self, seed: int, split: int, index: jax.Array) -> Batch:
    return self.chunk(seed, split, index, 0, self.length)

  def chunk(self, seed: int, split: int, index: jax.Array, start: jax.Array | int, size: int):
    """The steps start .. start + size - 1 of `sample`; `size` is static."""
    stream = self.stream(seed, split)
    one = lambda i: self._part(stream, i, start + jnp.arange(size))  # noqa: E731
    return jax.vmap(one)(index)

  def example(self, key: jax.Array) -> Batch:
    raise NotImplementedError("examples come in pairs with opposite hints: use sample or chunk")

  def _part(self, stream: jax.Array, i: jax.Array, t: jax.Array) -> Batch:
    pair = jax.random.fold_in(stream, i // 2)
    hint = jnp.where(jax.random.bernoulli(field(pair, 0)) ^ (i % 2 == 1), 1, -1)
    own = field(jax.random.fold_in(stream, i), 1)
    noise = jnp.zeros(t.shape, jnp.int32)
    if self.noise:
      noise = jax.vmap(lambda t: jax.random.randint(jax.random.fold_in(own, t), (), -1, 2))(t)
    end = t == self.length - 1
    seen = [jnp.zeros_like(t), jnp.where(t == self.active, hint, 0), end, noise]
    inputs = jnp.stack([a.astype(jnp.float32) for a in seen], axis=-1)
    way = jnp.where((t == 0) & self.active, LEFT, RIGHT)
    targets = jnp.where(end, jnp.where(hint > 0, UP, DOWN), way).astype(jnp.int32)
    mask = jnp.ones(t.shape, bool) if self.last is None else t >= self.length - self.last
    return Batch(inputs, targets, mask, jnp.int32(self.length), {"hint": hint})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    turn = jnp.where(jnp.sum(inputs[:, 1]) > 0, UP, DOWN)
    way = RIGHT
    if self.active:  # back until a hint was seen
      way = jnp.where(jnp.cumsum(inputs[:, 1] != 0) > 0, RIGHT, LEFT)
    return jnp.where(inputs[:, 2] == 1, turn, way).astype(jnp.int32)

  def closed_book(self, batch: Batch) -> Batch:
    """Without the hint."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, :, 1].set(0))


def success(predicted: jax.Array, batch: Batch) -> jax.Array:
  """Whether all actions `[B, T]` of each example that count are right, `[B] bool`."""
  return jnp.all((predicted == batch.targets) | ~batch.mask, axis=1)
