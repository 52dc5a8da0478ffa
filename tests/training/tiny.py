"""A model of five arrays, its loss, and endless batches that tell their position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import BatchStat, Fixed, Table, as_state, leaf, param
from memjax.core.module import stack
from memjax.training import LossOutput

ROWS, WIDTH = 6, 3


class Cell(nnx.Module):
  def __init__(self, rngs):
    init = nnx.initializers.normal(1.0)
    self.kernel = param(rngs, init, (WIDTH, WIDTH), axes=("embed", "mlp"))
    self.scale = param(rngs, nnx.initializers.ones, (WIDTH,), axes=("embed",))


class Tiny(nnx.Module):
  """`y = cells(x) + table[id] + offset`; two cells stacked as a Stack stacks its layers."""

  def __init__(self, rngs, rows: int = ROWS):
    init = nnx.initializers.normal(1.0)
    self.cells = nnx.Dict({"0+1x2": stack(Cell, 2, rngs)})
    self.table = param(rngs, init, (rows, WIDTH), axes=("rows", "value"), kind=Table)
    self.offset = param(rngs, init, (WIDTH,), axes=("embed",), kind=Fixed)
    self.mean = param(rngs, nnx.initializers.zeros, (WIDTH,), axes=("embed",), kind=BatchStat)

  def __call__(self, x, ids):
    def cell(x, cell):
      return x @ cell.kernel[...] * cell.scale[...].reshape(1, WIDTH), None

    x, _ = jax.lax.scan(cell, x, self.cells["0+1x2"])
    return x + self.table[...][ids] + self.offset[...].reshape(1, WIDTH)


@as_state
class Sum:
  total: jax.Array = leaf("memory")


@functools.cache
def tiny() -> Tiny:
  """One model for all tests: `init_train_state` copies its arrays."""
  return jax.jit(lambda: Tiny(nnx.Rngs(0)))()


def no_memory(rows: int) -> Sum:
  return Sum(jnp.zeros((rows, WIDTH)))


def squares(model, memory, batch, key):
  """Squared errors of the rows that count; the memory adds up what was said of each row."""
  noise = 0 if key is None else 0.1 * jax.random.normal(key, (WIDTH,)).reshape(1, WIDTH)
  said = model(batch["x"], batch["ids"])
  error = jnp.sum(jnp.square(said + noise - batch["y"]), axis=-1)
  total, count = jnp.sum(jnp.where(batch["valid"], error, 0)), jnp.sum(batch["valid"])
  if isinstance(memory, Sum):
    memory = Sum(memory.total + jax.lax.stop_gradient(said))
  return LossOutput(total, count.astype(jnp.float32), memory, {"size": jnp.mean(jnp.abs(said))})


class Batches:
  """Batch n is drawn from seed n; every `bad`-th one is full of NaN."""

  def __init__(self, rows: int = 4, bad=(), last: int | None = None):
    self.rows, self.bad, self.last, self.count = rows, set(bad), last, 0

  def __iter__(self):
    return self

  def __next__(self):
    if self.count == self.last:
      raise StopIteration
    self.count += 1
    return self.at(self.count)

  def at(self, number: int) -> dict:
    rng = np.random.default_rng(number)
    x, y = rng.normal(size=(2, self.rows, WIDTH)).astype(np.float32)
    if number in self.bad:
      y = np.full_like(y, np.nan)
    valid = np.arange(self.rows) != number % self.rows
    return {"x": x, "y": y, "ids": rng.integers(0, ROWS, self.rows), "valid": valid}

  def get_state(self):
    return {"count": self.count}

  def set_state(self, state):
    self.count = state["count"]


def same_bits(a, b) -> bool:
  """Whether two trees of arrays are equal bit for bit (NaN equals NaN of the same bits)."""
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False

  def bits(x):
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return x.dtype, x.shape, np.asarray(x).tobytes()

  return all(
    bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
