"""Shapes that the search is tested at, compiled for and measured at."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Search:
  """T = `tokens` queries of `width` for each head, among n * n slots."""

  tokens: int
  heads: int
  width: int
  n: int
  top_k: int
  dtype: str = "float32"

  @property
  def queries(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.tokens, self.heads, self.width), jnp.dtype(self.dtype))

  @property
  def keys(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((self.heads, 2, self.n, self.width // 2), jnp.dtype(self.dtype))


# One block of keys and several, more tokens than lanes, k a power of two and not.
SMALL = (Search(3, 2, 6, 100, 9), Search(130, 1, 8, 17, 8), Search(2, 1, 4, 1, 1))

# What one layer searches: specs of Memory Layers at Scale, more keys, odd sizes.
LARGE = (
  Search(8192, 4, 512, 1024, 32, "bfloat16"),
  Search(256, 2, 512, 4096, 32),
  Search(100, 1, 64, 200, 48),
)
