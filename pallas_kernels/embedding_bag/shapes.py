"""Shapes that the kernels are tested at, compiled for and measured at."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Bags:
  """T = `tokens` bags of `bag` rows of a table `[rows, *row]`."""

  tokens: int
  bag: int
  rows: int
  row: tuple[int, ...]
  dtype: str = "float32"

  @property
  def dim(self) -> int:
    return self.row[0] if len(self.row) == 1 else self.row[0] * self.row[1]

  @property
  def values(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.rows, *self.row), jnp.dtype(self.dtype))

  @property
  def ids(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.tokens, self.bag), jnp.int32)

  @property
  def weights(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.tokens, self.bag), jnp.float32)

  @property
  def vectors(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.tokens, self.dim), jnp.float32)


# A bag that is no multiple of anything, one of many groups, pairs, rows in one piece; fewer tokens
# than a block and more than two.
SMALL = (
  Bags(3, 5, 16, (384,)),
  Bags(9, 11, 32, (256,), "bfloat16"),
  Bags(130, 2, 8, (8, 128), "bfloat16"),
)

# What one layer reads: specs of Memory Layers at Scale, a table past 2^32 values, and odd ones.
LARGE = (
  Bags(8192, 128, 2**20, (1024,)),
  Bags(8192, 128, 2**20, (2048,), "bfloat16"),
  Bags(8192, 128, 2**20, (16, 128), "bfloat16"),
  Bags(2048, 128, 2**22, (2048,), "bfloat16"),
  Bags(77, 1000, 1000, (640,), "bfloat16"),
  Bags(1, 13, 72, (128,)),
)
