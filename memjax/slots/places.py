"""Embeddings of places, which are ids, or of the cells of a grid.

P places, R rows and C columns of a grid, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks, param
from memjax.core.layers import Linear
from memjax.slots.attending import sinusoid

KINDS = ("sine", "learned", "fourier", None)


class PlaceEmbedding(nnx.Module):
  """`[...]` int32 places -> `[..., D]` float32.

      sine      sines, then cosines of P - 1 - p, at rates from 1 to 1e-4
      learned   a row of a table a place
      fourier   MLP([cos(p W), sin(p W)] / sqrt(D))    (Li et al. 2021, arXiv 2106.02795)
      None      zero

  On a grid, place y C + x: "sine" and "learned" are the mean of the embeddings of row y and of
  column x, as if they were two of R + C places, columns first; "fourier" takes (y, x) for p.
  """

  def __init__(
    self, places: int, dim: int, *, kind: str | None = "sine", grid: tuple[int, int] | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(places=places, dim=dim)
    checks.one_of("place", kind, KINDS)
    if dim % 2:
      raise ValueError(f"dim={dim} is odd; sines and cosines halve it: use {dim + 1}")
    if grid is not None and grid[0] * grid[1] != places:
      raise ValueError(f"grid={grid} has {grid[0] * grid[1]} cells; it needs places={places}")
    self.places, self.dim, self.kind, self.grid = places, dim, kind, grid
    normal, rows = nnx.initializers.normal(1.0), places if grid is None else sum(grid)
    learned, fourier, waves = kind == "learned", kind == "fourier", (1 + bool(grid), dim // 2)

    def table(shape, axes):
      return param(rngs, normal, shape, axes=axes, dtype=param_dtype)

    def layer(axes):
      return Linear(dim, dim, bias=True, axes=axes, param_dtype=param_dtype, rngs=rngs)

    self.table = table((rows, dim), ("rows", "embed")) if learned else None
    self.rates = table(waves, ("memory", "embed")) if fourier else None
    self.inner = layer(("embed", "mlp")) if fourier else None
    self.outer = layer(("mlp", "embed")) if fourier else None

  def __call__(self, places: jax.Array) -> jax.Array:
    if self.kind is None:
      return jnp.zeros((*places.shape, self.dim))
    if self.kind == "fourier":
      return self._fourier(places)
    if self.grid is None:
      return self._at(places, self.places)
    rows, columns = self.grid
    row, column = jnp.divmod(places, columns)
    return (self._at(columns + row, rows + columns) + self._at(column, rows + columns)) / 2

  def _at(self, place, count: int):
    if self.table is None:
      return sinusoid(count - 1 - place, self.dim)
    return jnp.take(self.table[...].astype(jnp.float32), place, axis=0, mode="clip")

  def _fourier(self, places):
    assert self.rates is not None and self.inner is not None and self.outer is not None
    at = [places] if self.grid is None else jnp.divmod(places, self.grid[1])
    angles = jnp.stack(list(at), axis=-1).astype(jnp.float32) @ self.rates[...].astype(jnp.float32)
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) * self.dim**-0.5
    return self.outer(jax.nn.gelu(self.inner(waves), approximate=False))
