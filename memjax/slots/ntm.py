"""The Neural Turing Machine: a controller with a slot memory addressed by content and by position.

Graves, Wayne, Danihelka, "Neural Turing Machines", 2014, arXiv 1410.5401. The defaults are those
found to converge by Collier and Beel, "Implementing Neural Turing Machines", arXiv 1807.08518.

B batch, T tokens, D model width, C controller width, N slots, W slot width, R read heads, Wr write
heads, H = R + Wr, S shift range.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Fixed,
  Memory,
  Param,
  Replay,
  as_state,
  checks,
  clean,
  late,
  leaf,
  param,
)
from memjax.core.layers import Linear
from memjax.core.replay import as_replay
from memjax.slots import heads
from memjax.slots.controllers import LSTM, MLP, loop

CLIP = 20.0  # bound of head parameters and outputs
STARTS = ("constant", "trained", "learned", "random")


@as_state
class NTMState:
  """Memory `[B, N, W]`, the last weights `[B, R, N]`, `[B, Wr, N]`, reads `[B, R, W]`; all float32.

  `controller` holds one `LSTMState` a layer, or nothing for an MLP.
  """

  memory: jax.Array = leaf("slots", "memory")
  read_weights: jax.Array = leaf("memory", "slots")
  write_weights: jax.Array = leaf("memory", "slots")
  reads: jax.Array = leaf("memory", "memory")
  controller: Any


def _dense(dim: int, out: int, axes, dtype, rngs: nnx.Rngs) -> Linear:
  init = nnx.initializers.truncated_normal(dim**-0.5)
  return Linear(dim, out, bias=True, init=init, axes=axes, param_dtype=dtype, rngs=rngs)


def _near_zero(size: int):
  """What learned vectors of `size` start from: softmax and tanh of them are nearly flat."""
  bound = (6 / (1 + size)) ** 0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class NeuralTuringMachine(Memory):
  """A controller that reads and rewrites N slots through read and write heads, one step a token.

      h_t = controller([x_t; r_{t-1}]),  heads = clip(h_t Wp + bp),  y_t = clip([h_t; r_t] Wo + bo)
      w = sharpen(shift(g softmax(beta cos(k, M_{t-1})) + (1 - g) w_{t-1}, s), gamma), every head
      r_t = w_read M_{t-1},   M_t = M_{t-1} prod(1 - w_write e) + sum(w_write a)

  The first weights are the softmax of a learned vector a head, the first reads the tanh of one.
  Its gradients are written out: `jax.grad` and `jax.vjp` take them, `jax.jvp` does not.

  Args:
    dim: input width D.
    out: output width; `dim` when None, as a layer of a `Stack` needs.
    slots, width: N and W.
    read_heads, write_heads: R and Wr; all erasures come before all additions.
    controller: "lstm" or "mlp".
    hidden, layers: its width C and depth.
    shift: S, how far a head may move in a step; 0 leaves content addressing and staying.
    read_before_write: reads see M_{t-1}, as in public implementations; False: they see M_t.
    start: the first memory: "constant", 1e-6 everywhere; "trained", a parameter that begins there;
      "learned", tanh of a trained matrix; "random", tanh of a matrix drawn once. A trained one can
      name its slots, so that copying need not go on beyond the lengths it was trained on.
    learned_start: the LSTM's first state is trained; zeros otherwise.
    tanh: tanh on keys and added vectors; False leaves them linear.
    remat: None keeps the memory matrix of every token for back-propagation; "sqrt" that of
      about sqrt(T) tokens, and as many at a time, for one more forward pass; or a `Replay`.

  Measures (`core.usage`) `read_peak`, `written_peak`, `slots_read` and `slots_written`. Traces
  (`inspect`) `read [B, T, R, N]` and `written [B, T, Wr, N]`; of all heads, reads first, beta, g, s
  and gamma as `strength`, `gate`, `shift [B, T, H, S]` and `sharpness`, and `erase` and `add`.

  State: `NTMState`.
  """

  def __init__(
    self, dim: int, *, out: int | None = None, slots: int = 128, width: int = 20,
    read_heads: int = 1, write_heads: int = 1, controller: str = "lstm", hidden: int = 100,
    layers: int = 1, shift: int = 1, read_before_write: bool = True, start: str = "constant",
    learned_start: bool = False, tanh: bool = True, remat: str | Replay | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    out = dim if out is None else out
    checks.positive(dim=dim, out=out, slots=slots, width=width, hidden=hidden, layers=layers)
    checks.positive(read_heads=read_heads, write_heads=write_heads)
    checks.one_of("controller", controller, ("lstm", "mlp"))
    checks.one_of("start", start, STARTS)
    heads.check_shift(shift, slots)
    if learned_start and controller == "mlp":
      raise ValueError("learned_start=True needs controller='lstm'; an MLP has no state")
    self.dim, self.slots, self.width, self.shift = dim, slots, width, shift
    self.read_heads, self.write_heads = read_heads, write_heads
    self.read_before_write, self.tanh, self.start = read_before_write, tanh, start
    self.remat = as_replay(remat)
    make = {"layers": layers, "param_dtype": param_dtype, "rngs": rngs}
    if controller == "lstm":
      self.controller = LSTM(dim, read_heads * width, hidden, learned_start=learned_start, **make)
    else:
      self.controller = MLP(dim, read_heads * width, hidden, **make)

    size, features = sum(math.prod(each) for each in self._fields()), hidden + read_heads * width
    self.heads = _dense(hidden, size, ("memory", "memory"), param_dtype, rngs)
    self.out = _dense(features, out, ("memory", "embed"), param_dtype, rngs)
    self._first(param_dtype, rngs)

  def _first(self, dtype, rngs: nnx.Rngs) -> None:
    shape, axes = (self.read_heads + self.write_heads, self.slots), ("memory", "slots")
    self.first_weights = param(rngs, _near_zero(self.slots), shape, axes=axes, dtype=dtype)
    shape, axes = (self.read_heads, self.width), ("memory", "memory")
    self.first_reads = param(rngs, _near_zero(self.width), shape, axes=axes, dtype=dtype)
    init = {
      "trained": nnx.initializers.constant(1e-6),
      "learned": _near_zero(self.slots * self.width),
    }.get(self.start, nnx.initializers.normal(0.5))
    shape, axes = (self.slots, self.width), ("slots", "memory")
    kind = Fixed if self.start == "random" else Param
    first = param(rngs, init, shape, axes=axes, dtype=dtype, kind=kind)
    self.first_memory = None if self.start == "constant" else first

  def _fields(self) -> heads.Fields:
    return heads.fields(self.read_heads, self.write_heads, self.width, self.shift)

  def init_state(self, batch: int) -> NTMState:
    rows = lambda a: jnp.tile(a.astype(jnp.float32)[None], (batch, 1, 1))  # noqa: E731
    if self.first_memory is None:
      memory = jnp.full((batch, self.slots, self.width), 1e-6, jnp.float32)
    else:
      first = self.first_memory[...]
      memory = rows(first if self.start == "trained" else jnp.tanh(first))
    weights = jax.nn.softmax(self.first_weights[...].astype(jnp.float32), axis=-1)
    return NTMState(
      memory=memory,
      read_weights=rows(weights[: self.read_heads]),
      write_weights=rows(weights[self.read_heads :]),
      reads=rows(jnp.tanh(self.first_reads[...])),
      controller=self.controller.init_state(batch),
    )

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    inputs = self.controller.inputs(clean(x, valid)), late.factors(self.heads, *x.shape[:2])
    features, state = loop(self, inputs, state, reset=reset, valid=valid)
    return jax.lax.clamp(-CLIP, self.out(features), CLIP).astype(x.dtype), state

  def step(self, inputs, state: NTMState, context=None):
    """One step on a state with its memory as columns.

    Args:
      inputs: one token of `controller.inputs`, and of the `late` factors of the heads.

    Returns:
      `[h; reads] [B, C + R W]`, weights of reads and of writes; the state.
    """
    (token, factors), batch = inputs, state.reads.shape[0]
    h, controller = self.controller.step(token, state.reads.reshape(batch, -1), state.controller)
    numbers = jax.lax.clamp(-CLIP, late.product(self.heads, h, factors), CLIP)
    squash = jnp.tanh if self.tanh else (lambda a: a)
    state = heads.step(
      numbers, self._fields(), state, squash, read_before_write=self.read_before_write
    )
    features = jnp.concatenate([h, state.reads.reshape(batch, -1)], axis=-1)
    state = dataclasses.replace(state, controller=controller)
    return (features, state.read_weights, state.write_weights), state
