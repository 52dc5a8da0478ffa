"""CHIME: what was read of a context and written of an answer, gated from passage to passage.

Lu, Pergola, Gui, Li, He, "CHIME: Cross-passage Hierarchical Memory Network for Generative Review
Question Answering", 2020, arXiv 2011.00519. Compared with the authors' code (LuJunru/CHIME).

B batch, T tokens of the call, D width, g = C + A tokens of a passage, C of them its context, A its
answer, S rows that are looked at, H heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Context,
  Memory,
  Replay,
  as_state,
  bounded,
  channel,
  checks,
  clean,
  leaf,
  segmented,
  select,
  submodules,
)
from memjax.core.layers import Linear, dropout
from memjax.core.replay import as_replay
from memjax.core.usage import measure, measure_slots
from memjax.slots.segment_model import Encoded
from memjax.slots.slot_attention import LARGEST, PostNorm


@as_state
class Passages:
  """What a passage hands to the next.

  Attributes:
    context: `Encoded`, rows `[B, C, D]`.
    answer: `Encoded`, rows `[B, A, D]`.
    filled: `[B] int32`: 0 at a passage's border; after the context C and the answer's tokens so
      far; -1: the row was misused, and its outputs are NaN until a reset.
  """

  context: Encoded
  answer: Encoded
  filled: jax.Array = leaf()


@as_state
class CHIMEState:
  """Memories of a `CHIME`, and the encoder's state inside the open passage."""

  passages: Passages
  body: Any


class GatedRows(nnx.Module):
  """Writes tokens h into rows m, each as much as a look at others tells.

  z = LN(a + W2 relu(W1 a)),  a = LN(m + MHA(m; others))     one post-norm transformer layer
  m <- g m + (1 - g) h,  g = sigmoid([z; m] w + b)           a number a row
  """

  def __init__(
    self, dim: int, *, name: str, heads: int, hidden: int, dropout: float, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    self.name, self.dropout = name, dropout
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.look = PostNorm(dim, heads=heads, hidden=hidden, activation="relu", **make)
    self.gate = Linear(2 * dim, 1, bias=True, axes=("embed", "memory"), **make)

  def __call__(self, memory: Encoded, h, at, others: Encoded, key=None):
    """The new rows of tokens, all rows, and how tokens look at the others.

    Args:
      memory: R rows.   others: S rows.   key: for dropout.
      h: `[B, T, D]` float32.   at: `[B, T] int32`, rows that tokens go to, no row twice; R: none.

    Returns:
      `[B, T, D]`, h where a row had no value; `Encoded`; weights `[B, T, H, S]`.
    """

    def drop(x, index):
      return dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, index))

    batch, row = jnp.arange(h.shape[0])[:, None], jnp.minimum(at, memory.seen.shape[1] - 1)
    old = jnp.take_along_axis(memory.values, row[..., None], axis=1)
    seen = jnp.take_along_axis(memory.seen, row, axis=1) & (at == row)
    z, weights = self.look.across(old, others.values, others.seen, drop)
    keep = jax.nn.sigmoid(self.gate(jnp.concatenate([z, old], axis=-1)))
    measure(f"{self.name}_kept", keep[..., 0], seen, tokens=False)
    y = jnp.where(seen[..., None], keep * old + (1 - keep) * h, h)
    values = memory.values.at[batch, at].set(y, mode="drop")
    return y, Encoded(values, memory.seen.at[batch, at].set(True, mode="drop")), weights


class CHIME(Memory):
  """An encoder reads passages one after another; two memories of its hidden states are gated.

  A passage is C tokens of context (a question and a review), then A of an answer (a separator and
  the answer, the same in each passage), each part padded by `valid=False`. Tokens of the context
  see each other both ways, those of the answer see the context and what is before them. For passage
  j, with hidden states c_j `[C, D]` and a_j `[A, D]`, memories Cm and Am, and `GatedRows`:

      [c_j; a_j] = encoder(passage j)                     on its own: it sees no other passage
      Cm <- g Cm + (1 - g) c_j,   g of a look at c_j      Cm = c_1 at first
      Am <- g Am + (1 - g) a_j,   g of a look at Cm       the new one; Am = a_1 at first
      y_j = [Cm; Am]                                      each token's row, after passage j

  The answer is predicted from Am after the last passage: the outputs at its answer, in
  `LanguageModel(tied=True)` also through the transposed embedding. Row i holds the i-th valid token
  of its part, wherever padding stands. A row whose token a passage lacks stays as it was and is not
  looked at as new; a row that is new is set. Gradients go through all passages.

      encoder = partial(Stack, repeats=12, pattern=[
        partial(Attention, heads=12, span="span"), partial(FeedForward, bias=True)])

  A call has either T = m g tokens, every row at a passage's border, or T < g. Such a call at a
  border begins with all C tokens of a context; the next ones continue the passage's answer, until
  it has A valid tokens. To generate, encode every passage again with each new token, as the paper
  does: what is written is in all passages. For resets and misuse see `core.segmented`.

  Args:
    dim: model width D.
    encoder: factory of a body, called as `encoder(dim, rngs=rngs)`, causal but for the tokens that
      share a span. To continue answers it carries g tokens: `core.replace(model, capacity=g)`.
    context_length, answer_length: C and A; the paper has 164 and 84.
    heads, hidden: heads and inner width of both gates' layers.
    dropout: rate on what those layers' two branches add; needs `context.key`.
    remat: "full", memory replay back-propagation: what crosses the passages' borders is kept, and
      one passage's activations. None keeps all; or a `Replay`, which can stop gradients.

  Differences: the authors' attention reshapes heads without moving their axis, so that a head mixes
  positions; heads here are heads (with one they agree). Their memories hold the hidden states of
  padding too, and look at them; they leave out those of the tokens that separate parts, while here
  every valid token has a row. No dropout on attention weights. Kinds of tokens (question, review,
  answer) and the bias of the last projection are the caller's, as is the encoder.

  Measures (`core.usage`) `context_kept` and `answer_kept`, the gates of rows that had a value and
  got one, and, of how answers look at the context memory, `read_peak` and `slots_read`. Traces the
  gates, a passage each time, and `read`, `[B, T, H, C]`, zeros at contexts.

  State: `CHIMEState`, `(C + A) D` numbers and the encoder's.

  Raises:
    ValueError: the encoder reads no spans, is not causal without them, or cannot take g tokens; T
      is neither below g nor a multiple of it.
  """

  residual, causal = False, False

  def __init__(
    self, dim: int, *, encoder: Callable[..., Memory], context_length: int, answer_length: int,
    heads: int = 8, hidden: int = 2048, dropout: float = 0.1,
    remat: str | Replay | None = "full", param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    sizes = {"context_length": context_length, "answer_length": answer_length, "hidden": hidden}
    checks.positive(dim=dim, **sizes)
    checks.divides("heads", heads, "dim", dim)
    checks.fraction(dropout=dropout)
    self.dim, self.remat = dim, as_replay(remat)
    self.context_length, self.answer_length = context_length, answer_length
    self.segment = self.granularity = context_length + answer_length
    self.encoder = encoder(dim, rngs=rngs)
    _check_encoder(self.encoder, self.segment)
    make = {"heads": heads, "hidden": hidden, "dropout": dropout, "param_dtype": param_dtype}
    self.contexts, self.answers = (
      GatedRows(dim, name=name, **make, rngs=rngs) for name in ("context", "answer")
    )

  def init_state(self, batch: int) -> CHIMEState:
    empty = lambda rows: Encoded(  # noqa: E731
      jnp.zeros((batch, rows, self.dim), jnp.float32), jnp.zeros((batch, rows), jnp.bool_)
    )
    passages = Passages(
      empty(self.context_length), empty(self.answer_length), jnp.zeros(batch, jnp.int32)
    )
    return CHIMEState(passages, self.encoder.init_state(batch))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    segmented.check_length(x.shape[1], self.segment)
    run = self._open if x.shape[1] < self.segment else self._whole
    return run(clean(x, valid), state, reset, valid, context)

  def _whole(self, x, state, reset, valid, context):
    start = self.init_state(x.shape[0])
    first = jnp.arange(self.segment)[None] < self.context_length

    def step(x, valid, passages, context):
      came = jnp.ones(x.shape[:2], jnp.bool_) if valid is None else valid
      at = self._rows(came & first, came & ~first, 0)
      y, passages, _ = self._passage(
        x, start.body, passages, *at, skip=self.context_length, valid=valid, context=context
      )
      return y, passages

    y, passages, touched = segmented.whole(
      step, x, state.passages, segment=self.segment, init=start.passages, reset=reset, valid=valid,
      context=context, remat=self.remat,
    )  # fmt: skip
    body = start.body if touched is None else select(touched, start.body, state.body)
    return y, CHIMEState(passages, body)

  def _open(self, x, state, reset, valid, context):
    segmented.check_carry(self.encoder, self.segment, self.segment, "a passage")
    batch, length, _ = x.shape
    start = self.init_state(batch)
    state, late = segmented.restart(state, lambda: start, reset, valid)
    filled = state.passages.filled
    came = jnp.ones((batch, length), jnp.bool_) if valid is None else valid
    begins = (filled == 0) & jnp.any(came, axis=1)
    first = begins[:, None] & (jnp.arange(length)[None] < self.context_length)
    before = jnp.maximum(filled - self.context_length, 0)
    at_context, at_answer = self._rows(came & first, came & ~first, before)
    y, passages, body = self._passage(
      x, state.body, state.passages, at_context, at_answer, skip=0, valid=valid, context=context
    )
    count = before[:, None] + jnp.cumsum(came & ~first, axis=1, dtype=jnp.int32)
    broken = (filled < 0) | (begins & (length < self.context_length))
    broken = broken[:, None] | (count > self.answer_length)
    broken = broken if late is None else broken | late
    ends = (count[:, -1] == self.answer_length) & ~broken[:, -1]
    filled = jnp.where(jnp.any(came, axis=1), self.context_length + count[:, -1], filled)
    filled = jnp.where(broken[:, -1], -1, jnp.where(ends, 0, filled))
    passages = dataclasses.replace(passages, filled=filled)
    return segmented.poison(y, broken, valid), CHIMEState(passages, select(ends, start.body, body))

  def _rows(self, context, answer, before):
    """`[B, T] int32` twice: rows of tokens in the context memory (C: none) and in the answer
    memory (A: none), of which `before [B]` are taken."""

    def rows(come, before, size):
      row = jnp.cumsum(come, axis=1, dtype=jnp.int32) - 1 + before
      return jnp.where(come, jnp.minimum(row, size), size)

    before = jnp.reshape(before, (-1, 1))
    return rows(context, 0, self.context_length), rows(answer, before, self.answer_length)

  def _passage(self, x, body, passages, at_context, at_answer, *, skip: int, valid, context):
    """`y [B, T, D]`, the memories and the encoder's state after tokens of one passage.

    Args:
      at_context, at_answer: see `_rows`; only the first C tokens may be of a context.
      skip: how many of the first tokens are of no row's answer.
    """
    size, is_context = self.context_length, at_context < self.context_length
    inner = (context or Context()).fold(0)
    inner = inner.with_tokens({**inner.tokens, segmented.SPAN: is_context.astype(jnp.int32)})
    h, body = self.encoder(x, body, valid=valid, context=inner)
    h = bounded(h.astype(jnp.float32), LARGEST)
    keys = [None if context is None else context.fold(i).key for i in (1, 2)]
    memory, new = passages.context, None
    if x.shape[1] >= size:
      new = Encoded(h[:, :size], is_context[:, :size])
      y_context, memory, _ = self.contexts(memory, new.values, at_context[:, :size], new, keys[0])
    at = at_answer[:, skip:]
    y, answer, weights = self.answers(passages.answer, h[:, skip:], at, memory, keys[1])
    if channel.measuring():
      weights = jnp.pad(weights, ((0, 0), (skip, 0), (0, 0), (0, 0)))
      measure_slots(read=weights, valid=at_answer < self.answer_length)
    y = jnp.concatenate([h[:, :skip], y], axis=1)
    if new is not None:
      y = y.at[:, :size].set(jnp.where(new.seen[..., None], y_context, y[:, :size]))
    return y.astype(x.dtype), Passages(memory, answer, passages.filled), body


def _check_encoder(encoder: Memory, segment: int) -> None:
  name = f"the encoder ({type(encoder).__name__})"
  if segment % encoder.granularity:
    raise ValueError(
      f"context_length + answer_length = {segment} is not a multiple of the granularity "
      f"{encoder.granularity} of {name}"
    )
  if not segmented.causal(encoder):
    raise ValueError(f"{name} is not causal: an answer's tokens would see those after them")
  if not any(getattr(m, "span", None) == segmented.SPAN for m in submodules(encoder)):
    raise ValueError(
      f"nothing in {name} reads spans, so that a context's tokens cannot see each other both ways: "
      f"give its attention span={segmented.SPAN!r}"
    )
