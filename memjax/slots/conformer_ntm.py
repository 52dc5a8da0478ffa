"""The memory of Conformer-NTM: slots between an encoder and a decoder, read and written by frames.

Carvalho, Abad, "Memory-augmented conformer for improved end-to-end long-form ASR", Interspeech
2023, arXiv 2309.13029; the authors' code, github.com/Miamoto/Conformer-NTM (espnet2/asr/ntm).

B batch, T frames, D model width, N slots, W slot width, H pairs of heads, S shift range.
"""

import math
import warnings

import jax.numpy as jnp
from flax import nnx

from memjax.core import Fixed, Memory, Param, Replay, bounded, checks, clean, late, param
from memjax.core.layers import Linear, uniform
from memjax.core.replay import as_replay
from memjax.slots import heads as ntm_heads
from memjax.slots.controllers import loop, time_first
from memjax.slots.ntm import NTMState

ADDRESSING, STARTS = ("full", "content"), ("zeros", "random", "trained")
_LARGEST = 1e4  # of the heads' numbers: a frame that overflows leaves finite gradients


class ConformerNTM(Memory):
  """N slots that every frame reads and rewrites through H pairs of heads; no controller.

      heads = [x_t; r_{t-1}] Wp + bp
      c = softmax(beta cos(k, M_{t-1})), every head
      "full":     w = sharpen(shift(g c + (1 - g) w_{t-1}, s), gamma)
      "content":  w = c
      r_t = w_read M_{t-1},   M_t = M_{t-1} prod(1 - w_write e) + sum(w_write a)
      y_t = [x_t; r_t] Wo + bo

  k, a = tanh, e, g = sigmoid, s = softmax over -S to S, beta = softplus, gamma = 1 + softplus of
  the heads' numbers, as in `NeuralTuringMachine`. Slots and reads start at zero, weights at slot 0.
  Layers below it in a `Stack` are its encoder, those above its decoder: they see y alone.

  **Slots that stay equal.** The released code works out the whole address and then uses c, also for
  all the paper's results (its README says so). c weighs equal slots alike, and zeros are equal: all
  slots hold one vector m for ever, whatever N is, with m <- m (1 - e / N) + a / N and r = m, what
  `addressing="content", start="zeros"` computes (and warns of). The default is the paper's whole
  address, whose first weights tell slots apart.

  Unlike the code: all heads' numbers come from one matrix (the same function), of which "content"
  leaves out g, s and gamma, that have no use; with H > 1, where the code cannot run, all reads come
  first, then all erasures, then all additions; the heads' numbers are cut off at +-1e4; padding
  leaves the state alone. Its gradients are written out: `jax.grad` and `jax.vjp` take them,
  `jax.jvp` does not.

  Args:
    dim: width D.
    slots, width: N and W.
    heads: H.
    shift: S, how far a head may move in a step; not used by content alone.
    addressing: "full" or "content".
    start: the first slots: "zeros"; "random", drawn once from N(0, 0.02); "trained", which begins
      so.
    residual: a `Stack` adds y to x, as it does for other layers; the paper does not.
    remat: None keeps the memory matrix of every frame for back-propagation; a `Replay` fewer:
      `Replay(every=64, steps=False)` that of every 64th, and of 64 frames at a time.

  Measures (`core.usage`) `read_peak`, `written_peak`, `slots_read` and `slots_written`. Traces what
  `NeuralTuringMachine` does, by content alone without g, s and gamma.

  State: `NTMState` with `controller=()`.

  Warns:
    UserWarning: by content alone, from zeros.
  """

  def __init__(
    self, dim: int, *, slots: int = 128, width: int = 20, heads: int = 1, shift: int = 1,
    addressing: str = "full", start: str = "zeros", residual: bool = False,
    remat: str | Replay | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, slots=slots, width=width, heads=heads)
    checks.one_of("addressing", addressing, ADDRESSING)
    checks.one_of("start", start, STARTS)
    ntm_heads.check_shift(shift, slots)
    if addressing == "content" and start == "zeros" and slots > 1:
      warnings.warn(
        f"addressing='content' with start='zeros' keeps all {slots} slots equal for ever: a memory "
        f"of {width} numbers, as in the released model. start='random' or 'trained' tells them "
        "apart",
        stacklevel=2,
      )
    self.dim, self.slots, self.width, self.heads = dim, slots, width, heads
    self.shift, self.addressing, self.start = shift, addressing, start
    self.residual, self.remat = residual, as_replay(remat)
    size, back = sum(math.prod(each) for each in self._fields()), heads * width
    init = uniform((dim + back) ** -0.5)
    make = {"init": init, "param_dtype": param_dtype, "rngs": rngs}
    biased = {"bias": True, "bias_init": init, **make}
    self.inner = Linear(dim, size, axes=("embed", "memory"), **biased)
    self.fed_back = Linear(back, size, axes=("memory", "memory"), **make)
    self.out = Linear(dim + back, dim, axes=("memory", "embed"), **biased)
    kind = Fixed if start == "random" else Param
    rows = {"axes": ("slots", "memory"), "dtype": param_dtype, "kind": kind}
    first = param(rngs, nnx.initializers.normal(0.02), (slots, width), **rows)
    self.first_memory = None if start == "zeros" else first

  def _fields(self) -> ntm_heads.Fields:
    shift = self.shift if self.addressing == "full" else None
    return ntm_heads.fields(self.heads, self.heads, self.width, shift)

  def init_state(self, batch: int) -> NTMState:
    zeros = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)  # noqa: E731
    memory = zeros(self.slots, self.width)
    if self.first_memory is not None:
      memory = memory + self.first_memory[...].astype(jnp.float32)[None]
    return NTMState(
      memory=memory,
      read_weights=zeros(self.heads, self.slots).at[:, :, 0].set(1),
      write_weights=zeros(self.heads, self.slots).at[:, :, 0].set(1),
      reads=zeros(self.heads, self.width),
      controller=(),
    )

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    inputs = time_first(self.inner, x), late.factors(self.fed_back, *x.shape[:2])
    reads, state = loop(self, inputs, state, reset=reset, valid=valid)
    return self.out(jnp.concatenate([x, reads.astype(x.dtype)], axis=-1)), state

  def step(self, inputs, state: NTMState, context=None):
    """One step on a state with its memory as columns.

    Args:
      inputs: one frame of its own share of the heads' numbers, and of `late` factors.

    Returns:
      Reads `[B, H W]`, weights of reads and of writes `[B, H, N]`; the state.
    """
    (own, factors), batch = inputs, state.reads.shape[0]
    fed_back = late.product(self.fed_back, state.reads.reshape(batch, -1), factors)
    state = ntm_heads.step(bounded(own + fed_back, _LARGEST), self._fields(), state)
    return (state.reads.reshape(batch, -1), state.read_weights, state.write_weights), state
