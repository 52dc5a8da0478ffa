"""How a memory is used: numbers that memories hand to whoever asks, through the side channel.

A memory calls `measure` (or `measure_slots`) where its reads and writes are at hand. Nothing is
computed unless somebody collects with `channel.collect(measure=True)`; training does not. What
arrives are sums that add up over calls, segments and batches; means are taken at the end.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.state import stack_depths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean in the making.

  Attributes:
    total: float32, the sum of the values.   count: float32, how many there were.
    layers: int32, which layers of its stacks the memory is (`channel.indices`), as emitted; ().
  """

  total: jax.Array
  count: jax.Array
  layers: tuple[jax.Array, ...] = ()

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)

  @property
  def value(self) -> jax.Array:
    """The mean; 0 of no values."""
    return self.total / jnp.maximum(self.count, 1)


def measure(name: str, values: jax.Array, valid: jax.Array | None = None) -> None:
  """Hands the mean of `values` to whoever measures, under `name`; costs nothing if nobody does.

  Args:
    values: of any shape.
    valid: bool, of the leading axes of `values`: which of them count. None: all.
  """
  if not channel.measuring():
    return
  values = jax.lax.stop_gradient(values).astype(jnp.float32)
  if valid is None:
    total, count = jnp.sum(values), jnp.float32(values.size)
  else:
    valid = jnp.broadcast_to(valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim)),
                             values.shape)  # fmt: skip
    total, count = jnp.sum(jnp.where(valid, values, 0)), jnp.sum(valid, dtype=jnp.float32)
  channel.emit(name, Mean(total, count, channel.indices()))


def measure_slots(*, valid: jax.Array | None = None, **weights: jax.Array) -> None:
  """Measures how weights over slots are spread: `measure_slots(read=[B, T, R, N], valid=[B, T])`.

  Under `<name>_peak`: the largest of N weights, a mean over tokens and heads: 1 looks at one slot,
  1 / N at all alike. Under `slots_<name>`: the share of slots in use in a call, exp(entropy) / N of
  a row's weights summed over tokens and heads: 1 if all were used alike, 1 / N if only one was.

  Args:
    weights: `[B, T, heads, N]` each, not negative; heads that sum to 1.
    valid: `[B, T]` bool.
  """
  if not channel.measuring():
    return
  for name, w in weights.items():
    w = jax.lax.stop_gradient(w).astype(jnp.float32)
    measure(f"{name}_peak", jnp.max(w, axis=-1), valid)
    w = w if valid is None else jnp.where(valid[:, :, None, None], w, 0)
    mass = jnp.sum(w, axis=(1, 2))
    p = mass / jnp.maximum(jnp.sum(mass, axis=-1, keepdims=True), 1e-30)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)
    rows = None if valid is None else jnp.any(valid, axis=1)
    measure(f"slots_{name}", jnp.exp(entropy) / w.shape[-1], rows)


def measured(emitted: Mapping[str, Any]) -> dict[str, dict[str, Mean]]:
  """The means that memories measured, by the path of the layer: `{"2": {"read_peak": Mean}}`.

  Args:
    emitted: `Frame.emitted` of `channel.collect(measure=True)` around a call. Calls of one name are
      added, layers in a stack stand apart; "" is a memory that is in no stack.
  """
  found: dict[str, dict[str, Mean]] = {}
  for name, value in emitted.items():
    if not isinstance(value, Mean):
      continue
    *scope, last = name.split("/")
    for path, mine in _layers(scope, value):
      names = found.setdefault(path, {})
      plain = last.partition(".")[0]
      names[plain] = names[plain] + mine if plain in names else mine
  return found


def _layers(scope: list[str], mean: Mean) -> Iterator[tuple[str, Mean]]:
  """The sums of each of the layers that a scope stands for."""
  stacked = [i for i, part in enumerate(scope) if stack_depths(part) is not None]
  choices = [list(enumerate(stack_depths(scope[i]) or ())) for i in stacked]
  for chosen in itertools.product(*choices):
    path, here = list(scope), jnp.bool_(True)
    for place, layer, (index, depth) in zip(stacked, mean.layers, chosen, strict=True):
      path[place], here = str(depth), here & (layer == index)
    total, count = (jnp.sum(jnp.where(here, a, 0)) for a in (mean.total, mean.count))
    yield "/".join(path), Mean(total, count)
