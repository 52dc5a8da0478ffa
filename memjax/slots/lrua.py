"""The memory of memory-augmented neural networks: writes go to the slots read last or least used.

Santoro et al., "One-shot Learning with Memory-Augmented Neural Networks", 2016, arXiv 1605.06065.
No code by the authors; read beside it: github.com/tristandeleu/ntm-one-shot ("that code" below).

B batch, T tokens, D model width, C controller width, N slots, W slot width, R heads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Replay, as_state, checks, clean, late, leaf
from memjax.core.layers import Linear
from memjax.core.replay import as_replay
from memjax.core.usage import trace_step
from memjax.slots import addressing
from memjax.slots.controllers import LSTM, loop
from memjax.slots.usage import least_used

EPS = 1e-6  # of the cosine, beside the product of two squared lengths


@as_state
class LRUAState:
  """Memory `[B, N, W]`, usage `[B, N]`, the last read weights `[B, R, N]`, reads `[B, R, W]`.

  All float32; `controller` is a tuple of one `LSTMState`.
  """

  memory: jax.Array = leaf("slots", "memory")
  usage: jax.Array = leaf("slots")
  read_weights: jax.Array = leaf("memory", "slots")
  reads: jax.Array = leaf("memory", "memory")
  controller: Any


class LRUAMemory(Memory):
  """An LSTM with R heads that each write, by a gate, where they read last or to an unused slot.

  One step a token; a prime marks what is of the step before:

      h = LSTM([x; r']),  k = tanh(h Wk + bk),  a = tanh(h Wa + ba),  s = sigmoid(h Ws + bs)
      l = the R slots of least usage u'                                    indices, no gradient
      w_w,j = s_j w_r,j' + (1 - s_j) onehot(l_j)                           [R, N]
      M = M' with row l_0 set to zero, + sum_j w_w,j a_j                   [N, W]
      w_r,j = softmax_i(k_j . M(i) / sqrt(|k_j|^2 |M(i)|^2 + 1e-6))        [R, N]
      u = decay u' + sum_j w_r,j + sum_j w_w,j                             [N]
      r_j = w_r,j M,  y = [h; r_1..r_R] Wo + bo

  The first memory is 1e-6 everywhere; w_r and u start at slot 0, all else at zero. Give each
  episode a fresh state (or `reset`). For classes shown one step late, x holds the sample and the
  label before it, and y are logits. Gradients: reverse mode only (`jax.jvp` refuses).

  Like that code: rows a_j beside the keys, gates by the controller, a slot of its own for each
  head. The paper writes the keys (`write_value="key"`) and gates by learned numbers; it gives each
  head all of the R least used slots, with one head the same. Unlike that code: all heads' numbers
  come from one matrix (the same function), the LSTM's gates are Glorot-uniform over their
  whole input, and outputs are logits, before the softmax.

  Args:
    dim: input width D.
    out: output width; `dim` when None, as a layer of a `Stack` needs.
    slots, width: N and W.
    heads: R, of which each reads and writes; at most N.
    hidden: width C of the LSTM, which has no forget bias.
    decay: of the usage.
    write_value: what is written: "separate", the rows a_j; or "key", the keys k_j.
    remat: None keeps the memory matrix of every token for back-propagation; "sqrt" that of
      about sqrt(T) tokens, and as many at a time, for one more forward pass; or a `Replay`.

  Measures (`core.usage`) `read_peak`, `written_peak`, `slots_read` and `slots_written`. Traces
  (`inspect`) `read` and `written [B, T, R, N]`, `usage [B, T, N]` and `gate [B, T, R]`.

  State: `LRUAState`.
  """

  def __init__(
    self, dim: int, *, out: int | None = None, slots: int = 128, width: int = 40, heads: int = 4,
    hidden: int = 200, decay: float = 0.95, write_value: str = "separate",
    remat: str | Replay | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    out = dim if out is None else out
    checks.positive(dim=dim, out=out, slots=slots, width=width, heads=heads, hidden=hidden)
    checks.fraction(decay=decay)
    checks.one_of("write_value", write_value, ("separate", "key"))
    if heads > slots:
      raise ValueError(
        f"heads={heads} must be at most slots={slots}: each head has a slot to write"
      )
    self.dim, self.slots, self.width, self.heads = dim, slots, width, heads
    self.decay, self.write_value, self.remat = float(decay), write_value, as_replay(remat)
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.controller = LSTM(dim, heads * width, hidden, forget_bias=0.0, **make)
    kinds = (width, width, 1) if write_value == "separate" else (width, 1)
    make |= {"bias": True, "init": _by_kind(heads, kinds)}
    self.numbers = Linear(hidden, heads * sum(kinds), axes=("memory", "memory"), **make)
    make |= {"init": nnx.initializers.glorot_uniform()}
    self.out = Linear(hidden + heads * width, out, axes=("memory", "embed"), **make)

  def init_state(self, batch: int) -> LRUAState:
    first = jnp.zeros((batch, self.heads, self.slots), jnp.float32).at[:, :, 0].set(1)
    return LRUAState(
      memory=jnp.full((batch, self.slots, self.width), 1e-6, jnp.float32),
      usage=jnp.zeros((batch, self.slots), jnp.float32).at[:, 0].set(1),
      read_weights=first,
      reads=jnp.zeros((batch, self.heads, self.width), jnp.float32),
      controller=self.controller.init_state(batch),
    )

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    inputs = self.controller.inputs(clean(x, valid)), late.factors(self.numbers, *x.shape[:2])
    features, state = loop(self, inputs, state, reset=reset, valid=valid)
    return self.out(features).astype(x.dtype), state

  def step(self, inputs, state: LRUAState, context=None):
    """One step on a state with its memory as columns.

    Args:
      inputs: one token of `controller.inputs`, and of the `late` factors of the heads.

    Returns:
      `[h; reads] [B, C + R W]`, weights of reads and of writes; the state.
    """
    (token, factors), batch, heads = inputs, state.reads.shape[0], self.heads
    h, controller = self.controller.step(token, state.reads.reshape(batch, -1), state.controller)
    numbers = late.product(self.numbers, h, factors)
    vectors = jnp.tanh(numbers[:, :-heads]).reshape(batch, -1, self.width)
    # Keys, then rows; with `write_value="key"` the one are the other.
    keys, rows, gate = vectors[:, :heads], vectors[:, -heads:], numbers[:, -heads:]
    state, write = self.access(keys, rows, gate, state)
    features = jnp.concatenate([h, state.reads.reshape(batch, -1)], axis=-1)
    return (features, state.read_weights, write), dataclasses.replace(state, controller=controller)

  def access(self, keys: jax.Array, rows: jax.Array, gate: jax.Array, state: LRUAState):
    """Writes, then reads.

    Args:
      keys, rows: `[B, R, W]`, what is looked for and what is written.   gate: `[B, R]`, raw.
      state: with its memory as columns.

    Returns:
      The state, and the write weights `[B, R, N]`.
    """
    unused = jax.nn.one_hot(least_used(state.usage, self.heads), self.slots)
    gate = jax.nn.sigmoid(gate)[:, :, None]
    write = gate * state.read_weights + (1 - gate) * unused
    memory = jnp.where(unused[:, :1] > 0, 0.0, state.memory)  # one head's slot alone is emptied
    memory = memory + jnp.einsum("brn,brw->bwn", write, rows)
    read = jax.nn.softmax(_cosine(keys, memory), axis=-1)
    usage = self.decay * state.usage + jnp.sum(read, axis=1) + jnp.sum(write, axis=1)
    trace_step(gate=gate[:, :, 0], usage=usage)
    reads = addressing.read(read, memory)
    return LRUAState(memory, usage, read, reads, state.controller), write


def _cosine(keys: jax.Array, memory: jax.Array) -> jax.Array:
  """`k . M(i) / sqrt(|k|^2 |M(i)|^2 + EPS)`: `[B, R, W]`, `[B, W, N]` -> `[B, R, N]`."""
  lengths = (
    jnp.sum(jnp.square(keys), axis=2)[:, :, None] * jnp.sum(jnp.square(memory), axis=1)[:, None]
  )
  return jnp.einsum("brw,bwn->brn", keys, memory) * jax.lax.rsqrt(lengths + EPS)


def _by_kind(heads: int, kinds: tuple[int, ...]):
  """Glorot-uniform over the numbers of one kind of one head: keys, rows, gates."""

  def init(key, shape, dtype):
    bounds = [jnp.full(heads * size, (6 / (shape[0] + size)) ** 0.5, dtype) for size in kinds]
    return jax.random.uniform(key, shape, dtype, -1, 1) * jnp.concatenate(bounds)[None]

  return init
