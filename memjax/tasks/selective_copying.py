"""Selective copying ("Mamba", Gu and Dao 2023, arXiv 2312.00752): data among noise, due in order.

M data ids at random places of `length` tokens of noise and data, then M markers, at which they are
due in order; the marker does not say which. No fixed convolution solves it. Ids: 0 noise, 1 ..
vocab - 2 data, vocab - 1 the marker. The paper: length 4096 + 16, M 16, vocab 16.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, Batch, Task, field


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Task):
  """See the module.

  Attributes:
    length: tokens before the markers.   data: M.
    variable: data stand anywhere; False: at the start (plain copying).

  Meta: `rank [T]` of the data that is due.

  Raises:
    ValueError: the data do not fit.
  """

  length: int = 256
  data: int = 16
  vocab: int = 16
  variable: bool = True
  number = 3

  def __post_init__(self):
    checks.positive(length=self.length, data=self.data)
    if self.data > self.length:
      raise ValueError(f"data={self.data} must not exceed length={self.length}")
    if self.vocab < 4:
      raise ValueError(f"vocab={self.vocab} must be at least 4: noise, marker, and two data")

  @property
  def chance(self) -> float:
    return 1 / (self.vocab - 2)

  @property
  def floor(self) -> float:
    return max(self.chance, 1 / self.data)

  @property
  def state_bits(self) -> float:
    return self.data * math.log2(self.vocab - 2)

  def example(self, key: jax.Array) -> Batch:
    data = jax.random.randint(field(key, 0), (self.data,), 1, self.vocab - 1)
    places = jnp.arange(self.data)
    if self.variable:
      places = draw.spots(field(key, 1), self.length, self.data)
    told = jnp.zeros(self.length, jnp.int32).at[places].set(data)
    markers = jnp.full(self.data, self.vocab - 1, jnp.int32)
    nothing = jnp.full(self.length, IGNORE, jnp.int32)
    targets = jnp.concatenate([nothing, data.astype(jnp.int32)])
    rank = jnp.concatenate([jnp.zeros(self.length, jnp.int32), jnp.arange(self.data)])
    inputs, total = jnp.concatenate([told, markers]), jnp.int32(self.length + self.data)
    return Batch(inputs, targets, targets != IGNORE, total, {"rank": rank})

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    is_data = (inputs > 0) & (inputs < self.vocab - 1)
    number = jnp.where(is_data, jnp.cumsum(is_data) - 1, self.data)
    found = jnp.zeros(self.data, jnp.int32).at[number].set(inputs, mode="drop")
    asked = inputs == self.vocab - 1
    return jnp.where(asked, found[jnp.maximum(jnp.cumsum(asked) - 1, 0)], IGNORE)
