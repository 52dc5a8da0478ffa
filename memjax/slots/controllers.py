"""Controllers of memories with addressed slots, and the loop over tokens that all of them have.

The tokens' share of a step precedes the loop.

They are small and run once a token: their width is not split over a mesh's model axis.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import as_state, channel, checks, late, leaf, param, scan
from memjax.core.layers import Linear
from memjax.core.usage import measure_slots


@as_state
class LSTMState:
  """One LSTM layer's output and cell, `[B, C]` float32."""

  h: jax.Array = leaf("memory")
  c: jax.Array = leaf("memory")


def _glorot(fan_in: int, fan_out: int):
  """Glorot-uniform over the whole input, of which a matrix may take only a part."""
  bound = (6 / (fan_in + fan_out)) ** 0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def time_first(layer: Linear, x: jax.Array) -> jax.Array:
  """`layer(x)`, float32, made in the order in which a loop takes it: its gradient copies less."""
  return jnp.swapaxes(layer(jnp.swapaxes(x, 0, 1)), 0, 1).astype(jnp.float32)


def _forget_bias(value: float):
  return lambda key, shape, dtype: jnp.repeat(jnp.asarray([0, value, 0, 0], dtype), shape[0] // 4)


class LSTM(nnx.Module):
  """An LSTM over a token and what the memory feeds back (gates i, f, g, o).

  Args:
    dim: token width D.
    extra: width of what is fed back; may be 0.
    hidden: cells C of a layer.
    layers: how many, each over the one below.
    learned_start: the first h and c are trained; zeros otherwise.
    forget_bias: what the bias of the gates f starts from.
  """

  def __init__(
    self, dim: int, extra: int, hidden: int, *, layers: int = 1, learned_start: bool = False,
    forget_bias: float = 1.0, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, hidden=hidden, layers=layers)
    self.hidden, self.inner, self.recurrent = hidden, nnx.List(), nnx.List()
    for layer in range(layers):
      below, back = (dim, extra + hidden) if layer == 0 else (hidden, hidden)
      make = {"init": _glorot(below + back, 4 * hidden), "param_dtype": param_dtype, "rngs": rngs}
      names = ("embed" if layer == 0 else "memory", "memory")
      make_inner = make | {"bias": True, "bias_init": _forget_bias(forget_bias), "axes": names}
      self.inner.append(Linear(below, 4 * hidden, **make_inner))
      self.recurrent.append(Linear(back, 4 * hidden, axes=("memory", "memory"), **make))
    init, shape, names = nnx.initializers.normal(0.05), (layers, 2, hidden), ("memory",) * 3
    start = param(rngs, init, shape, axes=names, dtype=param_dtype) if learned_start else None
    self.start = start

  def init_state(self, batch: int) -> tuple[LSTMState, ...]:
    shape = (len(self.inner), 2, self.hidden)
    start = jnp.zeros(shape) if self.start is None else self.start[...].astype(jnp.float32)
    rows = jnp.tile(start[:, :, None], (1, 1, batch, 1))
    return tuple(LSTMState(h=layer[0], c=layer[1]) for layer in rows)

  def inputs(self, x: jax.Array) -> tuple[jax.Array, list]:
    """What tokens `x [B, T, D]` add to the first gates, `[B, T, 4C]` float32; `late` factors."""
    looped = [*self.recurrent, *self.inner[1:]]
    return time_first(self.inner[0], x), [late.factors(a, *x.shape[:2]) for a in looped]

  def step(self, inputs, extra: jax.Array, state: tuple[LSTMState, ...]):
    """One step: a token of `inputs`, `extra [B, E]`, states -> last layer's h `[B, C]`, states."""
    (gates, factors), depth, new, h = inputs, len(state), [], extra  # h: of the layer below
    for layer, old in enumerate(state):
      if layer == 0:
        back = jnp.concatenate([extra, old.h], axis=-1)
      else:
        gates, back = late.product(self.inner[layer], h, factors[depth + layer - 1]), old.h
      gates = gates + late.product(self.recurrent[layer], back, factors[layer])
      i, f, g, o = jnp.split(gates, 4, axis=-1)
      c = jax.nn.sigmoid(f) * old.c + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      new.append(LSTMState(h=h, c=c))
    return h, tuple(new)


class MLP(nnx.Module):
  """`h = tanh(W [x; extra] + b)`, `layers` deep: a controller without a state.

  Args: as for `LSTM`.
  """

  def __init__(
    self, dim: int, extra: int, hidden: int, *, layers: int = 1, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, hidden=hidden, layers=layers)
    make = {"init": _glorot(dim + extra, hidden), "param_dtype": param_dtype, "rngs": rngs}
    self.inner = Linear(dim, hidden, bias=True, axes=("embed", "memory"), **make)
    self.fed_back = Linear(extra, hidden, axes=("memory", "memory"), **make)
    make |= {"bias": True, "init": _glorot(hidden, hidden), "axes": ("memory", "memory")}
    self.upper = nnx.List([Linear(hidden, hidden, **make) for _ in range(layers - 1)])

  def init_state(self, batch: int) -> tuple[Any, ...]:
    return ()

  def inputs(self, x: jax.Array) -> tuple[jax.Array, list]:
    """What tokens `x [B, T, D]` add before the first tanh, `[B, T, C]` float32; `late` factors."""
    looped = [self.fed_back, *self.upper]
    return time_first(self.inner, x), [late.factors(a, *x.shape[:2]) for a in looped]

  def step(self, inputs, extra: jax.Array, state: tuple[Any, ...]):
    """One step: a token of `inputs`, `extra [B, E]` -> h `[B, C]`, the empty state."""
    token, factors = inputs
    h = jnp.tanh(token + late.product(self.fed_back, extra, factors[0]))
    for layer, factor in zip(self.upper, factors[1:], strict=True):
      h = jnp.tanh(late.product(layer, h, factor))
    return h, state


def columns(state):
  """A state with its `memory [B, N, W]` as columns `[B, W, N]` (see `addressing`), or back."""
  return dataclasses.replace(state, memory=jnp.swapaxes(state.memory, 1, 2))


def loop(memory: Any, inputs: Any, state: Any, *, reset=None, valid=None) -> tuple[Any, Any]:
  """Takes tokens one after another through `memory.step`, and measures its reads and writes.

  Args:
    memory: of addressed slots, with a `remat` and
      `step(inputs, state, context) -> (features, read weights, write weights), state` on a state
      with its memory as columns; weights `[B, heads, N]`.
    inputs: what a step takes of every token, a pytree of `[B, T, ...]`.
    state: with `memory [B, N, W]`.   reset, valid: as in `Memory.__call__`.

  Returns:
    features: `[B, T, ...]`.   state: as given.
  """
  measuring = channel.measuring()

  def step(inputs, state, context):
    (features, *weights), state = memory.step(inputs, state, context)
    return ((features, *weights) if measuring else features), state

  init = None if reset is None else columns(memory.init_state(state.memory.shape[0]))
  features, state = scan(
    step, inputs, columns(state), init=init, reset=reset, valid=valid, remat=memory.remat
  )
  if measuring:
    features, read, written = features
    measure_slots(read=read, written=written, valid=valid)
  return features, columns(state)
