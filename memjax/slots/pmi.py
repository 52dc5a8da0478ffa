"""PMI (perception, memory, inference): a small working memory that tokens compete to write, merged
into a long-term memory; tokens read both instead of each other.

Zeng, Lin, Hu, Huang, Zhang, "A Framework for Inference Inspired by Human Memory Mechanisms", ICLR
2024, arXiv 2310.09297. Compared with the authors' code
(zengxyyu/A-Framework-for-Inference-Inspired-by-Human-Memory-Mechanisms, SW_LTM).

B batch, T tokens, g tokens of a segment, D model width, H heads of keys of width K, N slots, C
layers of the long-term memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Memory,
  Replay,
  Stateless,
  as_state,
  checks,
  clean,
  leaf,
  segmented,
  select,
)
from memjax.core.replay import as_replay
from memjax.slots.pmi_step import LTM_UPDATES, PMIMemories, PMIStep


@as_state
class OpenSegment:
  """Tokens of the open segment.

  Attributes:
    tokens: X', `[B, g, D]` float32.
    found: a `Found`, or `Stateless` without correction.
  """

  tokens: jax.Array = leaf("window", "embed")
  found: Any


@as_state
class Found:
  """Keys `[B, g, H, K]` and values `[B, g, H, D / H]`, float32, of what these tokens found."""

  keys: jax.Array = leaf("window", "heads", "kv")
  values: jax.Array = leaf("window", "heads", "kv")


@as_state
class PMIState:
  """The memories of a `PMI`, and its open segment: zeros at a border, `Stateless` if not causal."""

  memories: PMIMemories
  open: Any


class PMI(Memory):
  """Attention through two memories: a working memory M `[N, D]`, a long-term memory L `[C, N, D]`.

  With att(x, y) = softmax((x Wq + bq)(y Wk + bk)^T) (y Wv + bv) by heads, not scaled, the same
  weights everywhere, att_k where only the k largest weights of a query and head count (they keep
  their values), and X' = X Wx + bx the tokens of a segment, X `[g, D]`:

      write:  Z = LN(M + att_k(M, X')),  Z <- LN(Z + mlp(Z))        mlp: relu(Z Wm + bm), 4 times
              L' = LN(L + O(L, Z))
              [i, f] = mean_t(relu(w * X'_t)) Wp + bp + tanh(M_n) Ws_n + bs_n      a slot n
              M' = sigmoid(i + bi) tanh(Z) + sigmoid(f + bf) M
      read:   U_w = att(X', M),  U_l = att_k(X', mean_c L),  U_c = att(U_l, U_w)
              U = (1 - share) U_w + share U_c

      O(L, Z)[c, n] = (sum_d L[c, n, d]) Z[n]            "contracted"
                      (sum_d L[c, n, d] Z[n, d]) Z[n]    "outer"

  M starts as the identity (`gates.identity`), L as uniform numbers in [0, 1); bi starts at 0, bf at
  1.

  Causal, a segment reads M and L as the segment before left them, and writes at its end; U_c looks
  back within the segment. Not causal, as the authors have it, a segment writes and then reads M'
  and L' (all its tokens see all): the mean over tokens, which opens the gates, would else tell
  early tokens of late ones. The authors' time is depth: layers that share all weights hand the
  memories on: `PMIEncoder`.

  Causal, a call has either T = m g tokens, every row at a segment's border, or T < g, which
  continues the open segment and writes at its g-th valid token. Not causal, T = m g; pad shorter
  inputs with `valid`. In a call of T = m g, a segment with any valid token is written. Where a
  reset acts, and misuse, which gives NaN, are as in `recurrent.RecurrentMemoryTransformer`.

  Differences: L starts from one draw, made with the weights, where the authors draw it anew for
  every input, in tests too; "outer" is this library's reading of the paper's outer product, whose
  code is "contracted"; memories outlive a call, as the caller wants it.

  Args:
    dim: model width D.
    segment: g.
    slots: N.
    heads: H; the authors have 4, 8 and 16 in models of 4, 8 and 12 layers.
    key_size: K.
    long_term: C.
    top_k: k; None: all weights count.
    share: of U_c; 1 leaves the working memory's own words out.
    correction: False: U_l takes the place of U_c, and the cost is linear in g.
    ltm_update: "contracted" or "outer".
    causal: as above.
    remat: None, "full" or a `Replay`: what back-propagation keeps of the segments.

  Measures (`core.usage`) `read_peak`, `slots_read`, `input_gate`, `forget_gate`; the gates at
  segments that a call holds whole.

  State: `PMIState`.
  """

  def __init__(
    self, dim: int, *, segment: int, slots: int = 8, heads: int = 4, key_size: int = 32,
    long_term: int = 5, top_k: int | None = 5, share: float = 0.3, correction: bool = True,
    ltm_update: str = "contracted", causal: bool = True, remat: str | Replay | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, segment=segment, slots=slots, key_size=key_size, long_term=long_term)
    checks.divides("heads", heads, "dim", dim)
    checks.one_of("ltm_update", ltm_update, tuple(LTM_UPDATES))
    if top_k is not None:
      checks.positive(top_k=top_k)
    if not 0 <= share <= 1:
      raise ValueError(f"share={share!r} must lie in [0, 1]")
    self.dim, self.segment, self.share, self.correction = dim, segment, share, correction
    self.causal, self.remat, self.granularity = causal, as_replay(remat), segment
    self.step = PMIStep(
      dim, slots=slots, heads=heads, key_size=key_size, long_term=long_term, top_k=top_k,
      ltm_update=ltm_update, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    self.key_size = key_size

  def init_state(self, batch: int) -> PMIState:
    return PMIState(self.step.init(batch), self._empty(batch))

  def _empty(self, batch: int):
    if not self.causal:
      return Stateless()
    shape, heads = (batch, self.segment), self.step.heads
    keys, values = (jnp.zeros((*shape, heads, n)) for n in (self.key_size, self.dim // heads))
    found = Found(keys, values) if self.correction else Stateless()
    return OpenSegment(jnp.zeros((*shape, self.dim)), found)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    segmented.check_length(x.shape[1], self.segment)
    x = clean(x, valid)
    if x.shape[1] < self.segment:
      if not self.causal:
        raise ValueError(
          f"x has T={x.shape[1]} tokens; PMI(causal=False) reads what a whole segment wrote and "
          f"takes multiples of segment={self.segment}: pad with valid=False"
        )
      y, state = self._part(x, state, reset, valid)
    else:
      y, state = self._whole(x, state, reset, valid)
    return y.astype(x.dtype), state

  # Whole segments: T = m g.

  def _whole(self, x, state, reset, valid):
    batch = x.shape[0]
    y, memories, touched = segmented.whole(
      lambda x, valid, memories, context: self.together(x, valid, memories), x, state.memories,
      segment=self.segment, init=self.step.init(batch), reset=reset, valid=valid, remat=self.remat,
    )  # fmt: skip
    opened = self._empty(batch)
    return y, PMIState(memories, opened if touched is None else select(touched, opened, state.open))

  def together(self, x, valid, memories: PMIMemories) -> tuple[jax.Array, PMIMemories]:
    """U of the tokens `x [B, T, D]` of one segment, float32, and the memories after it."""
    tokens = self.step.perceive(x)
    written = self.step.write(tokens, memories, valid)
    read = memories if self.causal else written
    working, other = self.step.read(tokens, read, valid)
    if self.correction:
      other = self._correct(tokens, other, self._found(tokens, working), self._seen(x, valid))
    return self._blend(working, other), written

  def _seen(self, x, valid):
    order = jnp.arange(x.shape[1])
    mask = (order[:, None] >= order[None, :])[None] if self.causal else None
    if valid is None:
      return mask
    return valid[:, None, :] if mask is None else mask & valid[:, None, :]

  def _found(self, tokens, working) -> Found:
    return Found(*self.step.told(working.astype(tokens.dtype)))

  def _correct(self, tokens, other, found: Found, mask):
    return self.step.look(other.astype(tokens.dtype), (found.keys, found.values), mask)[0]

  def _blend(self, working, other):
    return (1 - self.share) * working + self.share * other

  # A part of the open segment: T < g; causal only.

  def _part(self, x, state, reset, valid):
    batch, length, _ = x.shape
    init = functools.partial(self.init_state, batch)
    state, late = segmented.restart(state, init, reset, valid)
    memories = state.memories
    part = segmented.part(memories.filled, late, valid, shape=(batch, length), segment=self.segment)
    index = jnp.where(part.came & (part.place > 0), part.place - 1, self.segment)
    rows = jnp.arange(batch)[:, None]  # an index one past the end is dropped
    put = lambda a, new: a.at[rows, index].set(new.astype(a.dtype), mode="drop")  # noqa: E731
    tokens = self.step.perceive(x)
    opened, found = put(state.open.tokens, tokens), state.open.found
    working, other = self.step.read(tokens, memories, valid)
    if self.correction:
      found = jax.tree.map(put, found, self._found(tokens, working))
      seen = jnp.arange(self.segment)[None, None] < part.place[:, :, None]
      other = self._correct(tokens, other, found, seen)

    def write(memories):
      return select(part.ends, self.step.write(opened.astype(x.dtype), memories), memories)

    memories = segmented.if_any(part.ends, write, memories)
    memories = PMIMemories(memories.working, memories.long_term, part.filled)
    opened = select(part.ends, self._empty(batch), OpenSegment(opened, found))
    y = segmented.poison(self._blend(working, other), part.broken, valid)
    return y, PMIState(memories, opened)
