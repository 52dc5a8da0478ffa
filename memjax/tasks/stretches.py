"""Tasks of any length, of which any stretch is made by itself.

    part = task.chunk(0, TRAIN, jnp.arange(4), 999_000, 1000)   # of a sequence of a million

The tokens are those of `sample(...)[:, start : start + size]`; time and memory go with `size`, not
with where it starts or how long the whole is.
"""

import abc

import jax
import jax.numpy as jnp

from memjax.tasks.task import Batch, Task

BLOCK = 128  # numbers that share a key


class Stretches(Task):
  """A task that defines `stretch` in place of `example`.

  Attributes:
    length: tokens of an example.
  """

  length: int

  @abc.abstractmethod
  def stretch(self, key: jax.Array, start: jax.Array | int, size: int) -> Batch:
    """The places start .. start + size - 1 of one example; `length` is that of the whole."""

  def example(self, key: jax.Array) -> Batch:
    return self.stretch(key, 0, self.length)

  def chunk(
    self, seed: int, split: int, index: jax.Array, start: jax.Array | int, size: int
  ) -> Batch:
    """The places start .. start + size - 1 of `sample`; `size` is static, `start` need not be.

    Raises:
      ValueError: no places, or more than there are.
    """
    if not 1 <= size <= self.length:
      raise ValueError(f"size={size} must lie in 1..length={self.length}")
    stream = self.stream(seed, split)
    return jax.vmap(lambda i: self.stretch(jax.random.fold_in(stream, i), start, size))(index)


def integers(
  key: jax.Array, start: jax.Array | int, size: int, low: int, high: int
) -> jax.Array:  # fmt: skip
  """The numbers start .. start + size - 1 of an endless row of even draws from low..high - 1,
  `[size] int32`."""
  blocks = jnp.asarray(start) // BLOCK + jnp.arange((size - 2) // BLOCK + 2)
  block = lambda b: jax.random.randint(jax.random.fold_in(key, b), (BLOCK,), low, high)  # noqa: E731
  drawn = jax.vmap(block)(blocks).reshape(-1)
  return jax.lax.dynamic_slice_in_dim(drawn, jnp.asarray(start) % BLOCK, size)


def lay(
  background: jax.Array, start: jax.Array | int, places: jax.Array, sentences: jax.Array
) -> jax.Array:
  """The stretch `background [S]` from `start` on, with sentences laid over it.

  Args:
    places: `[n]` where each begins, in increasing order.   sentences: `[n, size]`.
  """
  n, size = sentences.shape
  t = start + jnp.arange(background.size)
  few = n <= 16
  which = jnp.searchsorted(places, t, side="right", method="compare_all" if few else "scan") - 1
  since = t - places[jnp.maximum(which, 0)]
  said = sentences[jnp.maximum(which, 0), jnp.clip(since, 0, size - 1)]
  return jnp.where((which >= 0) & (since < size), said, background).astype(jnp.int32)


def tail(values: jax.Array, start: jax.Array | int, size: int, told: int, other: int) -> jax.Array:
  """The stretch from `start` on of a row that is `other` for `told` places and `values [n]` after
  them, `[size] int32`."""
  at = start + jnp.arange(size) - told
  return jnp.where(at < 0, other, values[jnp.clip(at, 0, values.size - 1)]).astype(jnp.int32)
