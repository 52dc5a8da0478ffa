"""Rotary positions (RoFormer, arXiv 2104.09864); `rope_scaling` stretches them over more text."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.transformer.rope_scaling import Scaling, geometric

_NEAR = 2048  # below it a position times a rate <= 1 keeps 12 bits behind the point in float32


@dataclasses.dataclass(frozen=True)
class Rotary:
  """How positions turn queries and keys: the base of the wavelengths, and their scaling.

  Attributes:
    base: of the geometric series of rates, base^(-2j / K).
    scaling: None, or one of `rope_scaling`: `Rotary(scaling=YaRN(16.0, original_length=4096))`.

  Raises:
    ValueError: base is not above 1.
    TypeError: scaling is something else.
  """

  base: float = 10_000.0
  scaling: Scaling | None = None

  def __post_init__(self):
    if isinstance(self.base, bool) or not self.base > 1:
      raise ValueError(f"base={self.base!r} of Rotary must be a number > 1, such as 10_000.0")
    if self.scaling is not None and not isinstance(self.scaling, Scaling):
      raise TypeError(
        f"scaling={self.scaling!r} of Rotary must be one of memjax.transformer.rope_scaling, such "
        "as YaRN(4.0, original_length=2048), or None"
      )

  def rates(self, dim: int, length: int = 1) -> np.ndarray:
    """Angle of each pair per position: `[dim / 2]` float64.

    Args:
      dim: width K of a head, even.
      length: of the text; only `DynamicNTK` and `LongRoPE` read it.
    """
    checks.positive(dim=dim, length=length)
    if dim % 2:
      raise ValueError(f"dim={dim} is odd; rotary positions turn pairs: use {dim + 1}")
    if self.scaling is None:
      return geometric(self.base, dim)
    return self.scaling.rates(self.base, dim, length)

  @property
  def temperature(self) -> float:
    """What cos and sin are multiplied by: attention's logits get its square."""
    return 1.0 if self.scaling is None else self.scaling.temperature

  def angles(self, positions: jax.Array, dim: int, length: int = 1) -> jax.Array:
    """Angles `[..., dim / 2]` float32 of integer positions `[...]`, exact to 1e-3 up to 2^22."""
    angles = _angles(positions, self.rates(dim, length))
    start = 0 if self.scaling is None else self.scaling.start_tokens
    if not start:
      return angles
    return jnp.where(
      (positions < start)[..., None], _angles(positions, geometric(self.base, dim)), angles
    )


PLAIN = Rotary()


def rotate(
  x: jax.Array, positions: jax.Array, rotary: Rotary = PLAIN, *, length: int = 1
) -> jax.Array:
  """Turns each pair of features by an angle that grows with the position.

  With w_j = base^(-2j / K), the pair (x_j, x_{j + K/2}) at position p is turned by p w_j, so that
  the product of a query and a key depends on the difference of their positions only. Pairs are half
  the width apart (GPT-NeoX, Llama); the paper pairs neighbours: a permutation of the features.

  Args:
    x: `[B, T, H, K]`, K even.
    positions: `[B, T] int32`, or `[1, T]` where rows share them.
    rotary: base and scaling.
    length: of the text, for scalings that read it.

  Returns:
    `[B, T, H, K]` in the dtype of x; the angles are float32.
  """
  angles = rotary.angles(positions, x.shape[-1], length)[..., None, :]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if rotary.temperature != 1:
    cos, sin = cos * rotary.temperature, sin * rotary.temperature
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _angles(positions, rates: np.ndarray) -> jax.Array:
  """`positions * rates` up to whole turns. In float32 the product alone would be wrong by 0.25 at
  position 4 million, so whole turns of every 2048 positions are taken out in float64 first."""
  each = lambda a: jnp.asarray(a, jnp.float32).reshape((1,) * positions.ndim + (-1,))  # noqa: E731
  near, far = (a.astype(jnp.float32)[..., None] for a in (positions % _NEAR, positions // _NEAR))
  turns = np.remainder(rates * _NEAR + math.pi, 2 * math.pi) - math.pi
  return near * each(rates) + far * each(turns)
