"""The copy task of "Neural Turing Machines" (Graves, Wayne, Danihelka 2014, arXiv 1410.5401).

n vectors of random bits, a delimiter on a channel of its own, then n empty frames at which the
vectors are due in order. A frame's target is due at that frame. State needed: bits * n.

    x1 x2 .. xn | .  . ..  .  (padding)
                  x1 x2 .. xn           due

The paper: 8 bits, n in 1..20, asked up to 120.
"""

import dataclasses

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import Batch, field
from memjax.tasks.vectors import VectorTask, majority


@dataclasses.dataclass(frozen=True)
class Copy(VectorTask):
  """See the module. Channels: the bits, then the delimiter; T = 2 longest + 1.

  Attributes:
    shortest, longest: n is drawn evenly from these.   bits: of a vector.

  Meta: `place [T]` of the vector that is due: a shift shows as a block of errors from one place on,
  too little room as scattered ones.

  Raises:
    ValueError: sizes below 1, or shortest above longest.
  """

  shortest: int = 1
  longest: int = 20
  bits: int = 8
  number = 10

  def __post_init__(self):
    checks.positive(shortest=self.shortest, longest=self.longest, bits=self.bits)
    at_most("shortest", self.shortest, "longest", self.longest)

  @property
  def inputs_size(self) -> int:
    return self.bits + 1

  @property
  def outputs_size(self) -> int:
    return self.bits

  @property
  def floor(self) -> float:
    return majority_of(self.shortest, self.longest)

  @property
  def state_bits(self) -> float:
    return float(self.bits * self.longest)

  def example(self, key: jax.Array) -> Batch:
    n = jax.random.randint(field(key, 0), (), self.shortest, self.longest + 1)
    made = _layout(n, draw.bits(field(key, 1), self.longest, self.bits))
    t = jnp.arange(2 * self.longest + 1)
    meta = {"place": jnp.where(made.mask, t - n - 1, 0)}
    return Batch(made.inputs, made.targets, made.mask, 2 * n + 1, meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    border = jnp.argmax(inputs[:, self.bits])
    t = jnp.arange(2 * self.longest + 1)
    due = (t > border) & (t <= 2 * border)
    return jnp.roll(inputs[:, : self.bits], border + 1, axis=0) * due[:, None]


def at_most(name: str, least: int, of: str, most: int):
  """Raises ValueError if an interval's ends are the wrong way round."""
  if least > most:
    raise ValueError(f"{name}={least} must not exceed {of}={most}")


def majority_of(shortest: int, longest: int) -> float:
  """Share of bits that are right if each bit of n ~ U{shortest..longest} vectors is said to be the
  one that is commoner in its channel."""
  sizes = range(shortest, longest + 1)
  return sum(n * majority(n) for n in sizes) / sum(sizes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Copies:
  """Inputs `[B, T, bits + 1]`, targets `[B, T, bits]` of 0 and 1, mask `[B, T]`: where due."""

  inputs: jax.Array
  targets: jax.Array
  mask: jax.Array


def sample(key: jax.Array, batch: int, *, shortest: int = 1, longest: int = 20, bits: int = 8):
  """`batch` sequences of n ~ U{shortest..longest} vectors, in `T = 2 longest + 1` frames."""
  key_n, key_bits = jax.random.split(key)
  n = jax.random.randint(key_n, (batch, 1), shortest, longest + 1)
  word = jax.random.bernoulli(key_bits, 0.5, (batch, longest, bits)).astype(jnp.float32)
  return jax.vmap(_layout)(n[:, 0], word)


def _layout(n: jax.Array, word: jax.Array) -> Copies:
  """One sequence of the first n vectors of `word [longest, bits]`."""
  longest = word.shape[0]
  t = jnp.arange(2 * longest + 1)
  at = jnp.where(t < n, t, jnp.clip(t - n - 1, 0, longest - 1))
  vectors = word[at]
  shown, mask = (t < n)[:, None], (t > n) & (t <= 2 * n)
  delimiter = (t == n)[:, None].astype(jnp.float32)
  inputs = jnp.concatenate([vectors * shown, delimiter], axis=-1)
  return Copies(inputs, vectors * mask[:, None], mask)


def wrong_bits(logits: jax.Array, copies: Copies) -> jax.Array:
  """Wrong bits of each sequence after rounding, `[B]`."""
  wrong = (logits > 0) != (copies.targets > 0.5)
  return jnp.sum(wrong & copies.mask[:, :, None], axis=(1, 2))
