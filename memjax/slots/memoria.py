"""Memoria: a model that is reminded of engrams, which live as long as it attends to them.

Park and Bak, "Memoria: Resolving Fateful Forgetting Problem through Human-Inspired Memory
Architecture", ICML 2024, arXiv 2310.03052. Compared with the authors' code (cosmoquester/memoria).

B batch, g tokens of a segment, T tokens, D width, N working memories, E engrams, R reminded.
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
from memjax.core.usage import measure, trace_step
from memjax.slots import engrams as eng
from memjax.slots import store
from memjax.slots.memoria_layers import REMINDED, WORKING, Abstractor, Credit, MemoriaRead
from memjax.slots.segment_model import Encoded, SegmentModel, SegmentState
from memjax.slots.slot_attention import LARGEST


@as_state
class MemoriaBorder:
  """What a segment of a `Memoria` hands to the next.

  Attributes:
    engrams: `Engrams`, the working ones among them.
    last: the last segment's outputs, without gradient, and which of them there are.
    working: `[B, N, D]` float32, the working memories made of them, with gradient.
    reminded: `Reminded`, what they remind of.
    filled: `[B] int32`, see `core.segmented`.
  """

  engrams: eng.Engrams
  last: Encoded
  working: jax.Array = leaf("slots", "embed")
  reminded: eng.Reminded
  filled: jax.Array = leaf()


@as_state
class Reading:
  """The body's state, and the attention that the reminded engrams got in the open segment.

  Attributes:
    total: `[B, R]` float32, a sum over layers, heads and tokens.   count: `[B]` float32, how many
      these are.
  """

  body: Any
  total: jax.Array = leaf("slots")
  count: jax.Array = leaf()


class Memoria(SegmentModel):
  """A body whose segments leave N working memories each, and are reminded of older ones.

  Engrams are working, then short-term, then long-term memories, with `life` segments left and
  counts of how often two fired together. For segment t of g tokens, with h_{t-1} the outputs of the
  segment before:

      w = abstractor(stop_gradient(h_{t-1}))       [B, N, D], added as working engrams with `life`
      r = the engrams that w reminds of            see `engrams.remind`; w and r fire together
      h_t = body(x_t; w, r)                        its `MemoriaRead` layers see w and r; y_t = h_t
      life of r += gain * |r| * a                  a: the mean over layers, heads and tokens of the
                                                   attention: 1 / |r| if all get alike
      life of all -= 1;  working -> short-term; over `short_term` of these the oldest -> long-term;
      engrams with no life left are forgotten

  The first segment has no memory. Gradients reach the abstractor through a segment's reading of w,
  and cross no border. As a layer of a `Stack`, without a body of its own, it is a `MemoriaRead`
  with its memory; around a `Stack` whose layers hold a `MemoriaRead` each it is the paper's model:

      body = partial(Stack, repeats=12, pattern=[
        partial(Attention, heads=12), partial(MemoriaRead, heads=12), FeedForward])

  As a store: `write(items, state)` ends a segment with outputs `items`, `read(query, state)` reads
  what these remind of. For calls, resets and misuse see `core.segmented`. The paper resets every
  500 segments.

  Args:
    dim: model width D.
    body: factory of a causal body, called as `body(dim, rngs=rngs)`. To continue open segments its
      attention must carry g tokens: `core.replace(model, capacity=g)`.
    segment: tokens g of a segment.
    working: N.
    short_term: how many short-term engrams stay.
    engrams: E, room for all; None: twice N + short_term. Where it is full, the long-term engrams
      with the least life make room.
    remind: how many short-term and long-term engrams are reminded at most.
    depth: steps from long-term engram to long-term engram on the way to those reminded.
    life: of a new engram, in segments.
    gain: alpha, what an engram gains in life that is attended to as much as the others.
    init_std: deviation of the abstractor's parameters.
    remat: None, "full" or a `Replay`: what back-propagation keeps of the segments.

  Differences from the released code, whose batches are one list of equal length: rows do not
  influence each other; |r| is the number of engrams a row is reminded of, not the batch's largest;
  only short-term engrams that are reminded lead to long-term ones, and what is not there is neither
  found nor reminded; tokens that are not valid are not abstracted and give no credit; room is
  limited. Ties of the first step on the way are broken at random only with `context.key`. Credit
  counts the attention before dropout. The paper's connection weight is a count by the fire count of
  where it starts: the largest is the same.

  Measures (`core.usage`), once a segment, `engrams`, `long_term` and `reminded`, how many of them
  there are, and `life`, the mean of those alive; and what the body does. Traces
  (`inspect`) their `kinds` and `lives [B, T / g, E]`, and `reminded_ids`, which were; -1: none.

  State: `SegmentState` of a `MemoriaBorder` and a `Reading`: `(E + N + 2 g) D + E^2` numbers and
  the body's.

  Raises:
    ValueError: the body is not causal, has no `MemoriaRead` or holds another `Memoria`; engrams do
      not fit; T is neither below g nor a multiple of it.
  """

  def __init__(
    self, dim: int, *, body: Callable[..., Memory] = MemoriaRead, segment: int, working: int = 50,
    short_term: int = 400, engrams: int | None = None, remind: tuple[int, int] = (50, 50),
    depth: int = 10, life: float = 9.0, gain: float = 8.0, init_std: float = 0.02,
    remat: str | Replay | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(working=working)
    self._set_up(dim, segment=segment, slots=working, encodings=segment, remat=remat)
    self.engrams = 2 * (working + short_term) if engrams is None else engrams
    _check_sizes(working, short_term, self.engrams, remind, depth)
    if not life > 0 or not gain >= 0:
      raise ValueError(f"life={life!r} must be > 0 and gain={gain!r} >= 0")
    self.short_term, self.remind, self.depth = short_term, tuple(remind), depth
    self.life, self.gain = float(life), float(gain)
    make = {"init_std": init_std, "param_dtype": param_dtype, "rngs": rngs}
    self.abstractor = Abstractor(dim, slots=working, **make)
    self.inner = body(dim, rngs=rngs)
    self._check_body("the body", self.inner, source=None, causal=True)
    held = list(submodules(self.inner))
    if not any(isinstance(m, MemoriaRead) for m in held):
      raise ValueError(
        f"nothing in the body ({type(self.inner).__name__}) reads the memory: put a MemoriaRead "
        "among its layers"
      )
    if any(isinstance(m, Memoria) for m in held):
      raise ValueError(
        f"the body ({type(self.inner).__name__}) holds another Memoria, whose attention would "
        "count for this one: use one around the body, or one a layer"
      )

  @property
  def body(self) -> Memory:
    return self.inner

  def _first(self) -> jax.Array:
    return jnp.zeros((self.slots, self.dim), jnp.float32)

  def _border(self, batch: int) -> MemoriaBorder:
    shape, width = (batch, self.segment), self._width
    return MemoriaBorder(
      engrams=eng.empty(batch, self.engrams, self.dim),
      last=Encoded(jnp.zeros((*shape, self.dim), jnp.float32), jnp.zeros(shape, jnp.bool_)),
      working=jnp.broadcast_to(self._first()[None], (batch, self.slots, self.dim)),
      reminded=eng.Reminded(
        jnp.zeros((batch, width), jnp.int32), jnp.zeros((batch, width), jnp.bool_)
      ),
      filled=jnp.zeros(batch, jnp.int32),
    )

  @property
  def _width(self) -> int:
    return sum(min(count, self.engrams) for count in self.remind)

  def _fresh(self, batch: int) -> Reading:
    zeros = jnp.zeros((batch, self._width), jnp.float32)
    return Reading(self.inner.init_state(batch), zeros, zeros[:, 0])

  def _run(self, x, state: Reading, border: MemoriaBorder, *, valid, context):
    working = border.working
    if x.shape[1] == self.segment:  # anew: its gradient then stays in the segment that reads it
      working = self.abstractor(border.last.values, border.last.seen)
    y, state = self._ask(x, state, border, working, valid, context)
    return y, y, state

  def _ask(self, x, state: Reading, border: MemoriaBorder, working, valid, context):
    """The body on x with the memory, and its state with the credit."""
    there = jnp.broadcast_to(jnp.any(border.last.seen, axis=1)[:, None], working.shape[:2])
    data = jax.lax.stop_gradient(store.take(border.engrams.data, border.reminded.index))
    found = {WORKING: working, f"{WORKING}_seen": there}
    found |= {REMINDED: data, f"{REMINDED}_seen": border.reminded.seen}
    context = Context() if context is None else context
    context = dataclasses.replace(context, shared={**context.shared, **found})
    with channel.collect() as frame:
      y, body = self.inner(x, state.body, valid=valid, context=context)
    total, count = state.total, state.count
    for credit in frame.emitted.values():
      if isinstance(credit, Credit):  # of one layer, or of several that a scan has stacked
        total += jnp.sum(credit.total.reshape(-1, *total.shape), axis=0)
        count += jnp.sum(credit.count.reshape(-1, *count.shape), axis=0)
    return y, Reading(body, total, count)

  def _end(self, kept, valid, border: MemoriaBorder, state: Reading, context) -> MemoriaBorder:
    reminded = border.reminded
    share = state.total / jnp.maximum(state.count, 1)[:, None]
    width = jnp.sum(reminded.seen, axis=1, dtype=jnp.float32)[:, None]
    engrams = eng.settle(border.engrams, reminded, share * width * self.gain, self.short_term)
    return self._write(kept, valid, dataclasses.replace(border, engrams=engrams), context)

  def _write(self, kept, valid, border: MemoriaBorder, context) -> MemoriaBorder:
    seen = jnp.ones(kept.shape[:2], jnp.bool_) if valid is None else valid
    last = bounded(jax.lax.stop_gradient(clean(kept, valid)).astype(jnp.float32), LARGEST)
    working = self.abstractor(last, seen)
    short, long = self.remind
    engrams = eng.add(border.engrams, working, self.life)
    reminded = eng.remind(
      engrams, working, short=short, long=long, depth=self.depth,
      key=None if context is None else context.key,
    )  # fmt: skip
    if channel.measuring():
      _measure(engrams, reminded, None if valid is None else jnp.any(valid, axis=1))
    engrams = eng.fire(engrams, reminded)
    return MemoriaBorder(engrams, Encoded(last, seen), working, reminded, border.filled)

  def write(self, items: jax.Array, state: SegmentState, *, valid=None, context=None):
    """Ends a segment with outputs `items [B, L, D]`, L <= g, those that are `valid [B, L]`.

    Settles what `read` gave credit for, adds what the abstractor makes of the items, and is
    reminded. A row without a valid item keeps its state; one with an open segment is misused.

    Returns:
      The state.
    """
    checks.call(self, items, state, None, valid, dim=self.dim)
    batch, length = items.shape[:2]
    if length > self.segment:
      raise ValueError(
        f"items has {length} vectors; with segment={self.segment} at most so many fit"
      )
    came = jnp.ones((batch, length), jnp.bool_) if valid is None else valid
    kept = jnp.pad(clean(items, valid), ((0, 0), (0, self.segment - length), (0, 0)))
    came = jnp.pad(came, ((0, 0), (0, self.segment - length)))
    border = self._end(kept, came, state.border, state.body, context)
    filled = jnp.where(state.border.filled == 0, 0, -1)
    border = dataclasses.replace(border, filled=filled)
    new = dataclasses.replace(self.init_state(batch), border=border)
    return select(jnp.any(came, axis=1), new, state)

  def read(self, query: jax.Array, state: SegmentState, *, valid=None, context=None):
    """The body's outputs `[B, T, D]` for `query [B, T, D]`, any T, with the memory as it is.

    Returns:
      y, and the state, which differs by the credit only: reading it again asks anew.
    """
    checks.call(self, query, state, None, valid, dim=self.dim)
    border, fresh = state.border, self._fresh(query.shape[0])
    start = dataclasses.replace(state.body, body=fresh.body)
    y, after = self._ask(clean(query, valid), start, border, border.working, valid, context)
    y = segmented.poison(y, (border.filled != 0)[:, None], valid)
    return y, dataclasses.replace(state, body=dataclasses.replace(after, body=state.body.body))


def _measure(engrams, reminded, rows):
  alive = engrams.kind != eng.NONE
  many = jnp.sum(alive, axis=1)
  measure("engrams", many, rows)
  measure("long_term", jnp.sum(engrams.kind == eng.LONG, axis=1), rows)
  measure("reminded", jnp.sum(reminded.seen, axis=1), rows)
  measure("life", jnp.sum(engrams.life, axis=1) / jnp.maximum(many, 1), rows)
  chosen = jnp.where(reminded.seen, reminded.index, -1)
  trace_step(kinds=engrams.kind, lives=engrams.life, reminded_ids=chosen)


def _check_sizes(working, short_term, engrams, remind, depth):
  checks.positive(engrams=engrams)
  for name, value in {"short_term": short_term, "depth": depth}.items():
    if not isinstance(value, int) or value < 0:
      raise ValueError(f"{name}={value!r} must be an integer >= 0")
  if len(remind) != 2 or min(remind) < 0 or max(remind) < 1:
    raise ValueError(f"remind={remind!r} must be two numbers >= 0, and not both 0")
  if engrams < working + short_term:
    raise ValueError(
      f"engrams={engrams} has no room for working + short_term = {working} + {short_term} = "
      f"{working + short_term}"
    )
