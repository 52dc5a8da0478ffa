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

from memjax.core import Memory, as_state, channel, checks, leaf, param
from memjax.core.usage import measure_slots

NIL = 0  # the id that pads a sentence
SMALL = 512  # rows of a table that is read by products: the gradient of a gather is slow to add up
BLOCK = 64  # questions answered at once in a call: bounds the memory that a long call takes


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

  Measures (`core.usage`) `read_peak` and `slots_read` of every hop, but for `linear`.

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
    past, window, count = self._windows(x, state, stored, reset)
    encoded, asked = self.encode(past), self._question(x)
    times = self._times(count[:, :-1], context)

    def ask(inputs):
      u, window, count, times = inputs
      return self._reason(u, _take(encoded, window), count, times)

    inputs = (asked, window[:, :-1], count[:, :-1], times)
    inputs = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), inputs)
    found = jax.lax.map(ask, inputs, batch_size=min(BLOCK, x.shape[1]))
    y, reads = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)
    self._measure(reads, valid if question is None else question)
    return y, self._keep(past, window[:, -1], count[:, -1])

  def write(self, items: jax.Array, state: MemN2NState, *, valid=None) -> MemN2NState:
    """Stores sentences `items [B, T, J]`, in order; those not `valid [B, T]` are left out."""
    self._check(items, state, 3)
    checks.flag("valid", valid, items.shape[:2])
    stored = jnp.ones(items.shape[:2], bool) if valid is None else valid
    past, window, count = self._windows(items, state, stored, None)
    return self._keep(past, window[:, -1], count[:, -1])

  def read(self, question: jax.Array, state: MemN2NState, *, context=None) -> jax.Array:
    """Logits `[B, answers]` float32 for questions `[B, J]`; `context.key` draws the noise."""
    self._check(question, state, 2)
    return self.answer(question, self.encode(state.sentences), state.count, context=context)

  def encode(self, sentences: jax.Array) -> jax.Array:
    """Sentences `[..., J]` in every table of sentences, without their times: `[..., E, d]`."""
    tables = jnp.stack([_without_nil(table) for table in self.tables], axis=1)
    return self._embed(tables[: self.vocab], sentences)

  def answer(self, question, encoded, count, *, context=None) -> jax.Array:
    """Logits `[B, answers]` for questions `[B, J]` on memories `encoded [B, N, E, d]`.

    `count [B]` slots are filled, the most recent sentence first.
    """
    times = self._times(count[:, None], context)[:, 0]
    y, reads = self._reason(self._question(question), encoded, count, times)
    self._measure([p[:, None] for p in reads], count[:, None] > 0)
    return y

  def _measure(self, reads, asked):
    """Measures the attention `[B, T, N]` of each hop."""
    for hop, p in enumerate(reads):
      with channel.scope(f"hop{hop}"):
        measure_slots(read=p[:, :, None], valid=asked)

  def _answer(self, u, encoded, count, times):
    return self._reason(u, encoded, count, times)[0]

  def _reason(self, u, encoded, count, times):
    """Logits, and for whoever measures the attention `[B, N]` of each hop."""
    reads = []
    filled = jnp.arange(self.slots).reshape(1, -1) < count[:, None]
    encoded = jnp.where(filled[:, :, None, None], encoded + self._when(times), 0)
    last = len(self.tables) - 1
    tables = [table[:, :, 0] for table in jnp.split(encoded, last + 1, axis=2)]
    for hop in range(self.hops):
      read, out = (hop, hop + 1) if self.tying == "adjacent" else (0, last)
      scores = jnp.einsum("bd,bnd->bn", u, tables[read])
      p = self._attend(scores, filled)
      reads += [p] if channel.measuring() and not self.linear else []
      o = jnp.einsum("bn,bnd->bd", p, tables[out])
      u = o + (u if self.carry is None else u @ self.carry[...].astype(jnp.float32))
    table = self.tables[last] if self.out is None else self.out
    return u @ _without_nil(table)[: self.answers].T, reads

  def _attend(self, scores, filled):
    if self.linear:
      return scores
    if not self.mask_empty:
      return jax.nn.softmax(scores, axis=-1)
    # A finite floor and a product: a row with no sentence at all reads zero, with finite gradients.
    return jax.nn.softmax(jnp.where(filled, scores, -1e30), axis=-1) * filled

  def _question(self, question):
    table = _without_nil(self.tables[0] if self.asked is None else self.asked)
    return self._embed(table[: self.vocab, None], question)[..., 0, :]

  def _embed(self, tables, ids):
    """`sum_j l_j table[ids_j]`: tables `[vocab, E, d]`, ids `[..., J]` -> `[..., E, d]`."""
    same, slope, tilt = self._places(ids)
    bag = _bags(tables, ids, same)
    if self.position is not None:
      tilt = tilt.reshape((1,) * (bag.ndim - 1) + (-1,))
      bag = bag + tilt * _bags(tables, ids, slope)
    known = jnp.all((ids >= 0) & (ids < self.vocab), axis=-1)
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
    rows = _bags(tables.astype(jnp.float32), ids, jnp.ones(ids.shape))
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

  def _windows(self, x, state, stored, reset):
    """What is in the slots before each sentence and after the last.

    Returns:
      past: `[B, N + T, J]`, the state's sentences, oldest first, then x.
      window: `[B, T + 1, N]`, places in `past` of the stored sentences, most recent first.
      count: `[B, T + 1]`, how many of them there are.
    """
    batch, length = x.shape[:2]
    past = jnp.concatenate([state.sentences[:, ::-1], x], axis=1)
    before = jnp.arange(self.slots)[::-1].reshape(1, -1) < state.count[:, None]
    flags = jnp.concatenate([before, stored], axis=1)
    total = jnp.pad(jnp.cumsum(flags, axis=1), ((0, 0), (1, 0)))  # how many were stored before
    places = jnp.broadcast_to(jnp.arange(flags.shape[1]).reshape(1, -1), flags.shape)
    target = jnp.where(flags, total[:, :-1], flags.shape[1])
    rows = jnp.arange(batch)[:, None]
    order = jnp.zeros_like(places).at[rows, target].set(places, mode="drop")
    upto = total[:, self.slots :]
    forgotten = jnp.zeros_like(upto)
    if reset is not None:
      at_reset = jnp.where(reset, upto[:, :-1], 0)
      at_reset = jax.lax.cummax(at_reset, axis=1)
      forgotten = jnp.concatenate([at_reset, at_reset[:, -1:]], axis=1)
    count = jnp.minimum(upto - forgotten, self.slots)
    back = upto[:, :, None] - 1 - jnp.arange(self.slots).reshape(1, 1, -1)
    window = jnp.take_along_axis(order[:, None], jnp.maximum(back, 0), axis=2)
    return past, window, count

  def _keep(self, past, window, count) -> MemN2NState:
    filled = jnp.arange(self.slots).reshape(1, -1, 1) < count[:, None, None]
    return MemN2NState(jnp.where(filled, _take(past, window), NIL), count)

  def _check(self, ids, state, ndim: int) -> None:
    wanted = "ids [B, T, words={}]" if ndim == 3 else "ids [B, words={}]"
    fault = f"sentences are {ids.dtype}{list(ids.shape)}; they must be {wanted.format(self.words)}"
    if not jnp.issubdtype(ids.dtype, jnp.integer):
      raise TypeError(fault)
    if ids.ndim != ndim or ids.shape[-1] != self.words:
      raise ValueError(fault)
    checks.state_batch(state, ids.shape[0])


def _take(a, window):
  """Rows of `a [B, P, ...]` at `window [B, N]`."""
  return jnp.take_along_axis(a, window.reshape(window.shape + (1,) * (a.ndim - 2)), axis=1)


def _bags(tables, ids, weights) -> jax.Array:
  """`sum_j weights_j tables[ids_j]` `[..., E, d]`: tables `[V, E, d]`, ids, weights `[..., J]`."""
  if len(tables) <= SMALL:
    counts = jnp.einsum("...jv,...j->...v", jax.nn.one_hot(ids, len(tables)), weights)
    return jnp.einsum("...v,ved->...ed", counts, tables, precision="highest")
  return jnp.einsum("...jed,...j->...ed", jnp.take(tables, ids, axis=0, mode="clip"), weights)


def _without_nil(table) -> jax.Array:
  """A table in float32 whose row of the padding id is zero and gets no gradient."""
  return table[...].astype(jnp.float32).at[NIL].set(0)
