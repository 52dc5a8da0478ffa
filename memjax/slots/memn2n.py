"""End-to-end memory networks: several soft readings of a list of embedded sentences.

Sukhbaatar, Szlam, Weston, Fergus, "End-To-End Memory Networks", NIPS 2015, arXiv 1503.08895; what
the paper leaves open follows the authors' bAbI code (facebookarchive/MemNN).

B batch, T sentences in a call, J words of a sentence, N slots, K hops, E tables of sentences,
d embedding width.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, as_state, checks, leaf, param
from memjax.slots import bags, hops, store
from memjax.slots.bags import NIL, without_nil


@as_state
class MemN2NState:
  """Sentences `[B, N, J]` int32, the most recent first; the first `count [B]` slots are filled."""

  sentences: jax.Array = leaf("slots", "memory")
  count: jax.Array = leaf()


class EndToEndMemoryNetwork(Memory):
  """Answers a question by K soft readings of the last N sentences.

      m_i = sum_j l_j A^k[x_ij] + T_A^k[i],  c_i likewise with C^k,  u^1 = sum_j l_j B[q_j]
      p = softmax(u^k . m),  u^{k+1} = u^k + sum_i p_i c_i,  logits = u^{K+1} Wo

  Over `[B, T, J]` int32 sentences: each is asked against those stored before it, giving logits
  `[B, T, answers]`, and then stored, unless `context.tokens["question"]` (`[B, T]` bool, optional)
  says that it only asks. `write` and `read` do one or the other for whole batches; `encode` and
  `answer` are the two halves of `read`. Id 0 pads a sentence: its embedding is zero and stays zero.
  An id outside 0..vocab-1 gives NaN wherever it is read.

  Args:
    vocab: ids.
    dim: embedding width d.
    slots, words, hops: N, J and K.
    tying: "adjacent": A^{k+1} = C^k, B = A^1, Wo^T = C^K; "layerwise": one A and one C for all
      hops, B and Wo apart, and u^{k+1} = u^k H + o^k.
    position: weights l of the words by place: "centred", over J words and the time word, as in the
      authors' code; "paper", over the words that the sentence has; None, a bag of words.
    temporal: embed how many sentences ago each was stored.
    answers: the classes are ids 0..answers-1; `vocab` when None. In the authors' code the N time
      words are classes too: `vocab + slots`.
    linear: no softmax over the slots, the first phase of a linear start; `core.replace` changes it.
    noise: with `context.key`, up to this share of empty places is put between the stored times.
    mask_empty: empty slots get no attention; False leaves them in the softmax, as in that code.

  Measures (`core.usage`) `read_peak` and `slots_read` of every hop, but for `linear`. Traces
  (`inspect`) `hop0/read [B, T, 1, N]` and so on, the most recent slot first.

  State: `MemN2NState`.
  """

  def __init__(
    self, vocab: int, dim: int = 20, *, slots: int = 50, words: int, hops: int = 3,
    tying: str = "adjacent", position: str | None = "centred", temporal: bool = True,
    answers: int | None = None, linear: bool = False, noise: float = 0.0, mask_empty: bool = True,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    answers = vocab if answers is None else answers
    checks.positive(vocab=vocab, dim=dim, slots=slots, words=words, hops=hops, answers=answers)
    checks.one_of("tying", tying, ("adjacent", "layerwise"))
    checks.one_of("position", position, ("centred", "paper", None))
    checks.fraction(noise=noise)
    rows, adjacent = vocab + slots * temporal, tying == "adjacent"
    if answers > rows:
      raise ValueError(f"answers={answers} exceeds the {rows} rows of a table; at most {rows} fit")
    self.vocab, self.dim, self.slots, self.words, self.hops = vocab, dim, slots, words, hops
    self.tying, self.position, self.temporal, self.answers = tying, position, temporal, answers
    self.linear, self.noise, self.mask_empty = linear, noise, mask_empty

    def table(size, axes=("rows", "embed")):
      init = nnx.initializers.normal(0.1)
      return param(rngs, init, (size, dim), axes=axes, dtype=param_dtype)

    self.tables = nnx.List([table(rows) for _ in range(hops + 1 if adjacent else 2)])
    self.asked = None if adjacent else table(vocab)
    self.carry = None if adjacent else table(dim, ("embed", "memory"))
    self.out = None if adjacent else table(answers)

  def init_state(self, batch: int) -> MemN2NState:
    shape = (batch, self.slots, self.words)
    return MemN2NState(jnp.full(shape, NIL, jnp.int32), jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    self._check(x, state, 3)
    checks.flag("reset", reset, x.shape[:2])
    checks.flag("valid", valid, x.shape[:2])
    tokens = {} if context is None else context.tokens
    question = tokens.get("question")
    checks.flag('context.tokens["question"]', question, x.shape[:2])
    x = x if valid is None else jnp.where(valid[:, :, None], x, NIL)
    stored = jnp.ones(x.shape[:2], bool) if valid is None else valid
    stored = stored if question is None else stored & ~question
    seen = store.see(state.count, self.slots, stored, reset)
    past = store.past(state.sentences, x)
    encoded, asked, count = self.encode(past), self._question(x), seen.count[:, :-1]
    times = self._times(count, context)

    def ask(u, window, count, times):
      return self._reason(u, store.take(encoded, window), count, times)

    y, reads = store.ask(ask, asked, seen.window[:, :-1], count, times)
    hops.measure(reads, valid if question is None else question)
    return y, MemN2NState(store.keep(past, seen), seen.count[:, -1])

  def write(self, items: jax.Array, state: MemN2NState, *, valid=None) -> MemN2NState:
    """Stores sentences `items [B, T, J]`, in order; those not `valid [B, T]` are left out."""
    self._check(items, state, 3)
    checks.flag("valid", valid, items.shape[:2])
    stored = jnp.ones(items.shape[:2], bool) if valid is None else valid
    seen = store.see(state.count, self.slots, stored, None)
    return MemN2NState(store.keep(store.past(state.sentences, items), seen), seen.count[:, -1])

  def read(self, question: jax.Array, state: MemN2NState, *, context=None) -> jax.Array:
    """Logits `[B, answers]` float32 for questions `[B, J]`; `context.key` draws the noise."""
    self._check(question, state, 2)
    return self.answer(question, self.encode(state.sentences), state.count, context=context)

  def encode(self, sentences: jax.Array) -> jax.Array:
    """Sentences `[..., J]` in every table of sentences, without their times: `[..., E, d]`."""
    tables = jnp.stack([without_nil(table) for table in self.tables], axis=1)
    return self._embed(tables[: self.vocab], sentences)

  def answer(self, question, encoded, count, *, context=None) -> jax.Array:
    """Logits `[B, answers]` for questions `[B, J]` on memories `encoded [B, N, E, d]`.

    `count [B]` slots are filled, the most recent sentence first.
    """
    times = self._times(count[:, None], context)[:, 0]
    y, reads = self._reason(self._question(question), encoded, count, times)
    hops.measure([p[:, None] for p in reads], count[:, None] > 0)
    return y

  def _answer(self, u, encoded, count, times):
    return self._reason(u, encoded, count, times)[0]

  def _reason(self, u, encoded, count, times):
    """Logits, and for whoever measures the attention `[B, N]` of each hop."""
    filled = store.is_filled(count, self.slots)
    encoded = jnp.where(filled[:, :, None, None], encoded + self._when(times), 0)
    last = len(self.tables) - 1
    tables = [table[:, :, 0] for table in jnp.split(encoded, last + 1, axis=2)]
    pairs = zip(tables[:-1], tables[1:], strict=True)
    memories = list(pairs) if self.tying == "adjacent" else [(tables[0], tables[last])] * self.hops

    def update(hop, u, o):
      return o + (u if self.carry is None else u @ self.carry[...].astype(jnp.float32))

    u, reads = hops.loop(u, memories, lambda scores: self._attend(scores, filled), update)
    table = self.tables[last] if self.out is None else self.out
    logits = u @ without_nil(table)[: self.answers].T
    return logits, () if self.linear else reads  # scores are no weights

  def _attend(self, scores, filled):
    if self.linear:
      return scores
    return hops.soft(scores, filled) if self.mask_empty else jax.nn.softmax(scores, axis=-1)

  def _question(self, question):
    table = without_nil(self.tables[0] if self.asked is None else self.asked)
    return self._embed(table[: self.vocab, None], question)[..., 0, :]

  def _embed(self, tables, ids):
    """`sum_j l_j table[ids_j]`: tables `[vocab, E, d]`, ids `[..., J]` -> `[..., E, d]`."""
    same, slope, tilt = self._places(ids)
    bag = bags.bags(tables, ids, same)
    if self.position is not None:
      tilt = tilt.reshape((1,) * (bag.ndim - 1) + (-1,))
      bag = bag + tilt * bags.bags(tables, ids, slope)
    known = bags.known(ids, self.vocab)
    return jnp.where(known[..., None, None], bag, jnp.nan)

  def _places(self, ids):
    """The weights of words as `l_j = same_j + slope_j tilt`: `same, slope [..., J]`, `tilt [d]`."""
    k, j = jnp.arange(1, self.dim + 1) / self.dim, jnp.arange(1, self.words + 1)
    j = jnp.broadcast_to(j.astype(jnp.float32), ids.shape)
    if self.position == "paper":
      length = jnp.maximum(jnp.sum(ids != NIL, axis=-1, keepdims=True), 1)
      return 1 - j / length, 2 * j / length - 1, k
    last = self.words + self.temporal
    return jnp.ones_like(j), 4 * (j - (last + 1) / 2) / last, k - (self.dim + 1) / 2 / self.dim

  def _when(self, times):
    """Embeddings `[..., E, d]` of times `[...]`: 1 is the most recent sentence."""
    if not self.temporal:
      return jnp.zeros((1,) * (times.ndim + 2))
    tables = jnp.stack([table[...][self.vocab :] for table in self.tables], axis=1)
    ids = (times - 1)[..., None]
    rows = bags.bags(tables.astype(jnp.float32), ids, jnp.ones(ids.shape))
    if self.position != "centred":
      return rows
    last, k = self.words + 1, jnp.arange(1, self.dim + 1)
    weight = 1 + 4 * (k - (self.dim + 1) / 2) / self.dim * (last - (last + 1) / 2) / last
    return rows * weight.reshape((1,) * (rows.ndim - 1) + (-1,))

  def _times(self, count, context):
    """Times `[B, T, N]` of the slots, 1 to N, for `count [B, T]` filled ones."""
    exact = jnp.arange(1, self.slots + 1).reshape(1, 1, -1)
    if context is None or context.key is None or self.noise == 0:
      return jnp.tile(exact, (*count.shape, 1))
    key_gaps, key_order = jax.random.split(context.key)
    gaps = jax.random.uniform(key_gaps, count.shape)
    gaps = jnp.floor(gaps * (jnp.ceil(self.noise * count) + 1)).astype(jnp.int32)
    most = self.slots + math.ceil(self.slots * self.noise)
    places = jnp.arange(1, most + 1).reshape(1, 1, -1)
    order = jax.random.uniform(key_order, (*count.shape, most))
    order = jnp.where(places <= (count + gaps)[:, :, None], order, 2.0)
    chosen = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1) < count[:, :, None]
    times = jnp.sort(jnp.where(chosen, places, most), axis=-1)
    return jnp.minimum(times[:, :, : self.slots], self.slots)

  def _check(self, ids, state, ndim: int) -> None:
    bags.check("sentences", ids, ndim, self.words)
    checks.state_batch(state, ids.shape[0])
