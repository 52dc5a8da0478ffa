"""Memory networks, the strongly supervised original: sentences are kept as they are, found by hard
look-ups, and scored together with each possible answer.

Weston, Chopra, Bordes, "Memory Networks", ICLR 2015, arXiv 1410.3916.

B batch, T sentences in a call, J words of a sentence, N slots, K hops, V words, d embedding width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Fixed, Memory, as_state, checks, leaf, param
from memjax.slots import bags, store
from memjax.slots import hops as hop_loop
from memjax.slots.bags import NIL, without_nil

NOBODY = -1  # the slot of a fact that is not stored


@as_state
class MemNNState:
  """Sentences `[B, N, J]` int32, the most recent first; the first `count [B]` slots are filled."""

  sentences: jax.Array = leaf("slots", "memory")
  count: jax.Array = leaf()


class Scorer(nnx.Module):
  """`s(x, y) = Phi_x(x)^T U^T U Phi_y(y)`, U given as its three copies of the vocabulary and the
  three features of time."""

  def __init__(self, vocab: int, dim: int, *, temporal: bool, param_dtype, rngs: nnx.Rngs):
    init = nnx.initializers.normal(0.1)

    def table(rows):
      return param(rngs, init, (rows, dim), axes=("rows", "embed"), dtype=param_dtype)

    self.asked, self.known, self.candidate = table(vocab), table(vocab), table(vocab)
    self.times = table(3) if temporal else None

  def embed(self, name: str, ids) -> jax.Array:
    """`U Phi` of bags `[..., J]`, `[..., d]`: "asked", of an input; "known", of a memory beside
    it; "candidate", of what is scored."""
    table, ones = without_nil(getattr(self, name)), jnp.ones(ids.shape)
    bag = bags.bags(table[:, None], ids, ones)[..., 0, :]
    return jnp.where(bags.known(ids, len(table))[..., None], bag, jnp.nan)


class MemoryNetwork(Memory):
  """Finds K facts, each with those before, by the highest score, and the word that fits them best.

      s(x, y) = Phi_x(x)^T U^T U Phi_y(y);  U_O finds facts, U_R answers; Phi are bags of words
      o_k = argmax_i s_O([x, m_o1, .., m_o(k-1)], m_i),  logits_w = s_R([x, m_o1, .., m_oK], w)

  A word of the question, of a fact beside it, and of y counts as three words. With `temporal`, two
  memories are compared by when they were written, and the winner is kept in one pass from the
  oldest to the newest:

      s_Ot(x, y, y') = sum_e Phi_x(e)^T U^T U (Phi_y(y) - Phi_y(y') + Phi_t(e, y, y')), e in x
      Phi_t(e, y, y') = [e older than y, e older than y', y older than y'],  a question is newest

  Look-ups have no gradient: `loss` trains them with the supporting facts. `write` stores sentences,
  `read` asks, `find` says which slots answer, for whole batches. Over `[B, T, J]` int32 sentences:
  each is asked against those stored before it, giving logits `[B, T, V]`, and then stored, unless
  `context.tokens["question"]` (`[B, T]` bool, optional) says that it only asks. Id 0 pads a
  sentence: its embedding is zero and stays zero. An id outside 0..vocab-1 gives NaN wherever it is
  scored.

  Differences: N slots, of which the oldest is forgotten; the paper's store grows. Our reading: the
  features of time are taken of each part of x on its own; the winner is y and the next memory y',
  since of two that differ in time alone only the older can be told, by its feature. Not
  built: words never seen (the paper's section 3.5), exact matches (3.6), answers of several words.

  Args:
    vocab: V.
    dim: d.
    slots, words, hops: N, J and K.
    temporal: compare memories by time, too.
    margin: of the loss.
    hashed: score only memories that share a word with the question or with a fact found before
      (section 3.3); none may be left, and then no fact is found.
    ignored: ids that do not count as shared words.

  Measures (`core.usage`) `slots_read` of every hop (and `read_peak`, the share of look-ups that
  found a fact). Traces (`inspect`) `hop0/read [B, T, 1, N]` and so on: 1 at the slot it found.

  State: `MemNNState`.
  """

  def __init__(
    self, vocab: int, dim: int = 100, *, slots: int, words: int, hops: int = 2,
    temporal: bool = True, margin: float = 0.1, hashed: bool = False,
    ignored: tuple[int, ...] = (), param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(vocab=vocab, dim=dim, slots=slots, words=words, hops=hops)
    if not margin >= 0:
      raise ValueError(f"margin={margin!r} must not be negative")
    self.vocab, self.dim, self.slots, self.words, self.hops = vocab, dim, slots, words, hops
    self.temporal, self.margin, self.hashed = temporal, margin, hashed
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.output = Scorer(vocab, dim, temporal=temporal, **make)
    self.response = Scorer(vocab, dim, temporal=False, **make)
    self.skipped = Fixed(store.skipped(vocab, ignored), axes=("rows",))

  def init_state(self, batch: int) -> MemNNState:
    shape = (batch, self.slots, self.words)
    return MemNNState(jnp.full(shape, NIL, jnp.int32), jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    self._check(x, state, 3)
    question = None if context is None else context.tokens.get("question")
    checks.flag("reset", reset, x.shape[:2])
    checks.flag("valid", valid, x.shape[:2])
    checks.flag('context.tokens["question"]', question, x.shape[:2])
    x = x if valid is None else jnp.where(valid[:, :, None], x, NIL)
    stored = jnp.ones(x.shape[:2], bool) if valid is None else valid
    stored = stored if question is None else stored & ~question
    seen, past = store.see(state.count, self.slots, stored, reset), store.past(state.sentences, x)
    encoded = self.output.embed("candidate", past)

    def ask(question, window, count):
      memory, scored = store.take(past, window), store.take(encoded, window)
      return self._answer(question, memory, scored, count)

    y, found = store.ask(ask, x, seen.window[:, :-1], seen.count[:, :-1])
    self._measure(found, valid if question is None else question)
    return y, MemNNState(store.keep(past, seen), seen.count[:, -1])

  def write(self, items: jax.Array, state: MemNNState, *, valid=None) -> MemNNState:
    """Stores sentences `items [B, T, J]`, in order; those not `valid [B, T]` are left out."""
    self._check(items, state, 3)
    checks.flag("valid", valid, items.shape[:2])
    stored = jnp.ones(items.shape[:2], bool) if valid is None else valid
    seen = store.see(state.count, self.slots, stored, None)
    return MemNNState(store.keep(store.past(state.sentences, items), seen), seen.count[:, -1])

  def read(self, question: jax.Array, state: MemNNState) -> jax.Array:
    """Logits `[B, V]` float32 for questions `[B, J]`."""
    return self._read(question, state)[0]

  def find(self, question: jax.Array, state: MemNNState) -> jax.Array:
    """The slots `[B, K]` int32 of the facts found, 0 the most recent; `NOBODY` where none is."""
    return self._read(question, state)[1]

  def loss(self, question, facts, answer, state: MemNNState, *, key=None) -> jax.Array:
    """Margin ranking loss `[B]`: the supporting facts and the answer above all others.

        sum_k sum_{f != o_k} max(0, margin - s_O(.., m_ok) + s_O(.., f))
          + sum_{w != answer} max(0, margin - s_R(.., answer) + s_R(.., w))

    With `temporal` a fact has two terms: max(0, margin - s_Ot(.., m_ok, f)) and
    max(0, margin + s_Ot(.., f, m_ok)).

    Args:
      question: `[B, J]`.
      facts: `[B, K]`, the slots of the supporting facts in their order, 0 the most recent. Where
        one is `NOBODY` nothing is asked of that hop, and the next ones see no fact of it.
      answer: `[B]`, words.
      key: draws one negative a sum, as the paper does; None: all of them.
    """
    self._check(question, state, 2)
    if tuple(facts.shape) != (len(question), self.hops):
      got = f"facts have shape {list(facts.shape)}"
      raise ValueError(f"{got}; they must be [B, hops] = {[len(question), self.hops]}")
    keys = [None] * 3 * self.hops if key is None else list(jax.random.split(key, 3 * self.hops))
    filled = store.is_filled(state.count, self.slots)
    scored, total = self.output.embed("candidate", state.sentences), jnp.zeros(len(question))
    parts, slots = [self.output.embed("asked", question)], [jnp.full(len(question), NOBODY)]
    for hop in range(self.hops):
      fact = facts[:, hop]
      others = filled & (jnp.arange(self.slots).reshape(1, -1) != fact[:, None])
      others = others & (fact != NOBODY)[:, None]
      more = self._compare(parts, slots, scored, fact[:, None], None)  # the fact against f
      less = self._compare(parts, slots, scored, None, fact[:, None])
      total += _hinge(self.margin - more, others, keys[3 * hop])
      if self.temporal:
        total += _hinge(self.margin + less, others, keys[3 * hop + 1])
      parts, slots = self._extend(self.output, parts, slots, state.sentences, fact)
    scores = self._respond(question, state.sentences, [facts[:, k] for k in range(self.hops)])
    right = jnp.take_along_axis(scores, answer[:, None], axis=1)
    others = jnp.arange(self.vocab).reshape(1, -1) != answer[:, None]
    others = others & (jnp.arange(self.vocab).reshape(1, -1) != NIL)
    return total + _hinge(self.margin - right + scores, others, keys[-1])

  def _read(self, question, state):
    self._check(question, state, 2)
    scored = self.output.embed("candidate", state.sentences)
    y, found = self._answer(question, state.sentences, scored, state.count)
    self._measure(found[:, None], state.count[:, None] > 0)
    return y, found

  def _answer(self, question, memory, scored, count):
    """Logits `[B, V]` and the slots found `[B, K]`."""
    filled = store.is_filled(count, self.slots)
    parts, slots = [self.output.embed("asked", question)], [jnp.full(len(question), NOBODY)]
    words, found = question, []
    for _ in range(self.hops):
      allowed = filled
      if self.hashed:
        allowed = filled & store.shares(words, memory, self.skipped[...])
      slot = self._best(parts, slots, scored, allowed)
      parts, slots = self._extend(self.output, parts, slots, memory, slot)
      words = jnp.concatenate([words, _one(memory, slot)], axis=1)
      found.append(slot)
    unknown = jnp.any(jnp.isnan(scored[..., 0]) & filled, axis=1)
    y = self._respond(question, memory, found)
    return jnp.where(unknown[:, None], jnp.nan, y), jnp.stack(found, axis=1)

  def _respond(self, question, memory, found):
    """`s_R` `[B, V]` of all words."""
    parts, slots = [self.response.embed("asked", question)], [jnp.full(len(question), NOBODY)]
    for slot in found:
      parts, slots = self._extend(self.response, parts, slots, memory, slot)
    return sum(parts, jnp.zeros(())) @ without_nil(self.response.candidate).T

  def _extend(self, scorer, parts, slots, memory, slot):
    """x with one fact more; nothing where there is none."""
    part = scorer.embed("known", _one(memory, slot))
    return [*parts, jnp.where((slot != NOBODY)[:, None], part, 0)], [*slots, slot]

  def _best(self, parts, slots, scored, allowed):
    """The slot `[B]` with the highest score among those `allowed [B, N]`."""
    if not self.temporal:
      scores = jnp.einsum("bd,bnd->bn", sum(parts, jnp.zeros(())), scored)
      best = jnp.argmax(jnp.where(allowed, scores, -jnp.inf), axis=1)
      return jnp.where(jnp.any(allowed, axis=1), best, NOBODY)

    def step(winner, slot):  # from the oldest to the newest
      score = self._compare(parts, slots, scored, winner[:, None], slot[None, None])[:, 0]
      better = allowed[:, slot] & ((winner == NOBODY) | (score < 0))
      return jnp.where(better, slot, winner), None

    start = jnp.full(scored.shape[0], NOBODY)
    return jax.lax.scan(step, start, jnp.arange(self.slots)[::-1])[0]

  def _compare(self, parts, slots, scored, one, other):
    """`s_Ot(x, one, other)` of slots `[B, n]` each; None: all N, in order."""
    every = jnp.arange(self.slots).reshape(1, -1)
    one, other = (every if a is None else a for a in (one, other))
    scores = jnp.einsum("bd,bnd->bn", sum(parts, jnp.zeros(())), scored)
    batch = scores.shape[0]

    def at(place):
      place = jnp.broadcast_to(place, (batch, place.shape[1]))
      return jnp.take_along_axis(scores, jnp.maximum(place, 0), axis=1)

    total = at(one) - at(other)
    if self.output.times is None:
      return total
    weights = self.output.times[...].astype(jnp.float32)
    for part, slot in zip(parts, slots, strict=True):  # a larger slot is older
      when = part @ weights.T
      features = slot[:, None] > one, slot[:, None] > other, one > other
      for index, feature in enumerate(features):
        total = total + when[:, index, None] * feature
    return total

  def _measure(self, found, asked):
    """Measures which slots were found, `[B, T, K]`."""
    reads = jax.nn.one_hot(found, self.slots)
    hop_loop.measure([reads[:, :, hop] for hop in range(self.hops)], asked)

  def _check(self, ids, state, ndim: int) -> None:
    bags.check("sentences", ids, ndim, self.words)
    checks.state_batch(state, ids.shape[0])


def _one(memory, slot):
  """The sentences `[B, J]` in slots `[B]`; padding where there is none."""
  sentence = store.take(memory, jnp.maximum(slot, 0)[:, None])[:, 0]
  return jnp.where((slot != NOBODY)[:, None], sentence, NIL)


def _hinge(violations, others, key):
  """`sum max(0, violation)` over the `others [B, n]`, or that of one of them, drawn with a key."""
  costs = jnp.where(others, jax.nn.relu(violations), 0)
  if key is None:
    return jnp.sum(costs, axis=1)
  drawn = jnp.argmax(jax.random.uniform(key, others.shape, minval=1e-6) * others, axis=1)
  return jnp.take_along_axis(costs, drawn[:, None], axis=1)[:, 0]
