"""How a memory is used: numbers that memories hand to whoever asks, through the side channel.

A memory calls `measure` (or `measure_slots`) where its reads and writes are at hand. Nothing is
computed unless somebody collects with `channel.collect(measure=True)`; training does not. What
arrives are sums that add up over calls, segments and batches; means are taken at the end.

With `channel.collect(trace=True)` the arrays themselves arrive too, and those that are handed to
`trace` or `trace_step` alone: `memjax.inspect` records them.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.state import stack_depths

_TRACE = ":trace"  # keeps the name of an array apart from that of its mean


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


def measure(
  name: str, values: jax.Array, valid: jax.Array | None = None, *, tokens: bool | None = None
) -> None:
  """Hands the mean of `values` to whoever measures, under `name`, and the values to whoever
  traces; costs nothing if nobody does.

  Args:
    values: of any shape that begins with the batch.
    valid: bool, of the leading axes of `values`: which of them count. None: all.
    tokens: axis 1 of `values` is tokens. None: if `valid` has two axes; without it, if there is an
      axis 1.
  """
  if not channel.measuring():
    return
  if channel.tracing():
    default = (values if valid is None else valid).ndim > 1
    _hand(name, values, default if tokens is None else tokens)
  mean(name, values, valid)


def mean(name: str, values: jax.Array, valid: jax.Array | None = None) -> None:
  """As `measure`, of values that are not traced, or are traced elsewhere."""
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
  Whoever traces gets the weights, under `<name>`.

  Args:
    weights: `[B, T, heads, N]` each, not negative; heads that sum to 1.
    valid: `[B, T]` bool.
  """
  if not channel.measuring():
    return
  trace(**weights)
  for name, w in weights.items():
    w = jax.lax.stop_gradient(w).astype(jnp.float32)
    mean(f"{name}_peak", jnp.max(w, axis=-1), valid)
    w = w if valid is None else jnp.where(valid[:, :, None, None], w, 0)
    mass = jnp.sum(w, axis=(1, 2))
    p = mass / jnp.maximum(jnp.sum(mass, axis=-1, keepdims=True), 1e-30)
    entropy = -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)
    rows = None if valid is None else jnp.any(valid, axis=1)
    mean(f"slots_{name}", jnp.exp(entropy) / w.shape[-1], rows)


def trace(**values: jax.Array) -> None:
  """Hands arrays `[B, T, ...]` to whoever traces: `trace(read=weights)`."""
  for name, value in values.items():
    _hand(name, value, True)


def trace_step(**values: jax.Array) -> None:
  """As `trace`, inside a loop over time: arrays `[B, ...]` of one token, or of one segment."""
  for name, value in values.items():
    _hand(name, value, False)


def _hand(name: str, values: jax.Array, tokens: bool) -> None:
  if channel.tracing():
    channel.emit(name + _TRACE, channel.Traced(jax.lax.stop_gradient(values), tokens))


def traced(emitted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The arrays that memories traced, `[B, T, ...]` each, by path and name: `{"2/read": array}`.

  T counts tokens, or segments for what happens once a segment. Layers in a stack stand apart. The
  axis of a loop that is neither over time nor over layers stands after T.

  Args:
    emitted: `Frame.emitted` of `channel.collect(trace=True)` around a call.
  """
  found = {}
  for name, value in emitted.items():
    if isinstance(value, channel.Traced):
      *scope, last = name.split("/")
      for path, array in _apart(scope, value):
        found["/".join([*path, last.replace(_TRACE, "")])] = array
  return found


def _apart(scope: list[str], value: channel.Traced) -> Iterator[tuple[list[str], jax.Array]]:
  """Path and array of each of the layers that a scope stands for."""
  places = [i for i, part in enumerate(scope) if stack_depths(part) is not None]
  axes = [i for i, loop in enumerate(value.loops) if loop == "layers"]
  loops = [loop for loop in value.loops if loop != "layers"]
  stacked = jnp.moveaxis(value.values, axes, range(len(axes)))
  depths = [stack_depths(scope[place]) or () for place in places]
  for chosen in itertools.product(*(range(len(depth)) for depth in depths)):
    path = list(scope)
    for place, depth, index in zip(places, depths, chosen, strict=True):
      path[place] = str(depth[index])
    yield path, _in_time(stacked[chosen], loops, value.tokens)


def _in_time(a: jax.Array, loops: list[str | None], tokens: bool) -> jax.Array:
  """`[*loops, B, (T), ...]` as `[B, T, ...]`."""
  batch = len(loops)
  times = [i for i, loop in enumerate(loops) if loop == "time"]
  times += [batch + 1] if tokens else []
  others = [i for i in range(a.ndim) if i != batch and i not in times]
  a = jnp.transpose(a, (batch, *times, *others))
  return a.reshape(a.shape[0], -1, *a.shape[1 + len(times) :])


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
