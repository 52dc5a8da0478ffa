"""Key-value memory networks: hops over slots that are found by a key and answer with a value.

Miller, Fisch, Dodge, Karimi, Bordes, Weston, "Key-Value Memory Networks for Directly Reading
Documents", EMNLP 2016, arXiv 1606.03126; what the paper leaves open follows the authors' code
(facebookarchive/MemNN, KVmemnn), with its settings for WikiMovies.

B batch, T slots in a call, N slots, Jk, Jv and J words of a key, a value and a question, H hops, d
embedding width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Fixed, Memory, as_state, checks, leaf, param
from memjax.core.layers import Linear
from memjax.core.usage import trace
from memjax.slots import bags, store
from memjax.slots import hops as hop_loop
from memjax.slots.bags import NIL, without_nil


@as_state
class KeyValueState:
  """Keys `[B, N, Jk]`, values `[B, N, Jv]` int32, the most recent first; `count [B]` are filled."""

  keys: jax.Array = leaf("slots", "memory")
  values: jax.Array = leaf("slots", "memory")
  count: jax.Array = leaf()


class KeyValueMemoryNetwork(Memory):
  """Answers a question by H readings of slots, each a bag of words to match and one to return.

      phi(x) = sum_j E[x_j] / sqrt(words of x),  q^1 = phi(question)
      p = softmax_i(q^h . phi(k_i)),  q^{h+1} = R_h (q^h + sum_i p_i phi(v_i)) + b_h
      logits = q^{H+1} . phi(answer)

  One table E `[vocab, d]` embeds all of them. After the last hop nothing is rotated, as in the
  authors' code; the paper's formula does, with `rotate_last`. A value without words is its key. In
  an empty memory nothing is read (in that code one slot of a word that is always zero: the same).

  `write` stores slots and `read` asks, for whole batches. Over `[B, T, Jk + Jv]` int32 ids, keys
  and then values: each key is asked against the slots stored before, giving logits
  `[B, T, answers]`, and then stored with its value, unless `context.tokens["question"]` (`[B, T]`
  bool, optional) says that it only asks. Id 0 pads a bag: its embedding is zero and stays zero. An
  id outside 0..vocab-1 gives NaN wherever it is read. `kv_encodings` makes keys and values of
  triples and of texts.

  Differences: of the slots that share a word with the question, the `select` most recent ones are
  read; in the authors' code an index is cut at the first 1000 slots of a word, and words found in
  more are not in it (name them in `ignored`). Times count all stored slots; there those that are
  read, with random gaps if asked for. Not built: cosine scores, a rotation of all embeddings.

  Args:
    vocab: ids.
    dim: embedding width d.
    key_words, value_words: Jk and Jv.
    slots, hops: N and H.
    select: how many slots a question reads, of those whose key shares a word with it; None: all,
      whether they share one or not.
    ignored: ids that do not count as shared words, such as those of stop words.
    scale: divide a bag by the root of its number of words; False: the plain sums of the paper.
    position: weight words by their places, as in `EndToEndMemoryNetwork(position="paper")`, in
      questions, keys and values.
    temporal: one more word in keys and values that tells how many slots ago they were stored.
    rotate_last: rotate after the last hop, too.   rotate_bias: the rotations have biases b.
    answers: the classes are ids 0..answers-1; `vocab` when None.
    shared_answers: E embeds the answers; False: a table of their own.
    init: standard deviation of all parameters at first.

  Measures (`core.usage`) `read_peak` and `slots_read` of every hop. Traces (`inspect`)
  `hop0/read [B, T, 1, N]` and so on, the most recent slot first; with `select` of so many slots,
  and `chosen [B, T, select]`: how many slots ago they were stored.

  State: `KeyValueState`.
  """

  def __init__(
    self, vocab: int, dim: int = 500, *, key_words: int, value_words: int = 1, slots: int = 1000,
    hops: int = 2, select: int | None = None, ignored: tuple[int, ...] = (), scale: bool = True,
    position: bool = False, temporal: bool = False, rotate_last: bool = False,
    rotate_bias: bool = True, answers: int | None = None, shared_answers: bool = True,
    init: float = 0.1, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    answers, read = vocab if answers is None else answers, slots if select is None else select
    checks.positive(vocab=vocab, dim=dim, slots=slots, hops=hops, answers=answers, select=read)
    checks.positive(key_words=key_words, value_words=value_words)
    if answers > vocab or read > slots:
      name, value, most = (
        ("answers", answers, "vocab") if answers > vocab else ("select", read, "slots")
      )
      raise ValueError(f"{name}={value} exceeds {most}={vocab if most == 'vocab' else slots}")
    self.vocab, self.dim, self.slots, self.hops, self.select = vocab, dim, slots, hops, select
    self.key_words, self.value_words, self.answers = key_words, value_words, answers
    self.scale, self.position, self.temporal = scale, position, temporal
    shape, axes = (vocab + slots * temporal, dim), ("rows", "embed")
    normal = nnx.initializers.normal(init)
    self.table = param(rngs, normal, shape, axes=axes, dtype=param_dtype)
    flat, own = _uniform(init), (answers, dim)
    out = None if shared_answers else param(rngs, flat, own, axes=axes, dtype=param_dtype)
    self.out = out
    make = {"bias": rotate_bias, "init": flat, "bias_init": flat, "param_dtype": param_dtype}
    rotate = functools.partial(Linear, dim, dim, axes=("embed", "memory"), **make, rngs=rngs)
    self.rotations = nnx.List([rotate() for _ in range(hops - 1 + rotate_last)])
    self.skipped = Fixed(store.skipped(vocab, ignored), axes=("rows",))

  def init_state(self, batch: int) -> KeyValueState:
    empty = lambda words: jnp.full((batch, self.slots, words), NIL, jnp.int32)  # noqa: E731
    keys, values = empty(self.key_words), empty(self.value_words)
    return KeyValueState(keys, values, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    question = None if context is None else context.tokens.get("question")
    x, stored = self._items(x, state, valid)
    checks.flag("reset", reset, x.shape[:2])
    checks.flag('context.tokens["question"]', question, x.shape[:2])
    stored = stored if question is None else stored & ~question
    seen, keys, values = self._see(x, state, stored, reset)
    encoded = self._encode(keys, values)

    def ask(query, window, count):
      window, (times, read) = self._choose(query, store.take(keys, window), window, count)
      k, v = (store.take(a, window) for a in encoded)
      return *self._reason(query, k, v, times, read), times

    asked = x[:, :, : self.key_words]
    u, reads, times = store.ask(ask, asked, seen.window[:, :-1], seen.count[:, :-1])
    self._trace(times)
    hop_loop.measure(reads, valid if question is None else question)
    return self._logits(u, None), self._keep(seen, keys, values)

  def write(self, items, state: KeyValueState, *, valid=None) -> KeyValueState:
    """Stores slots `items [B, T, Jk + Jv]`, keys and then values, in order; those not `valid
    [B, T]` are left out."""
    items, stored = self._items(items, state, valid)
    return self._keep(*self._see(items, state, stored, None))

  def read(self, question, state: KeyValueState, *, candidates=None) -> jax.Array:
    """Logits `[B, answers]` float32 for questions `[B, J]`, any number of words.

    Args:
      candidates: other answers, bags of words `[C, J]`, or `[B, C, J]` a row its own: `[B, C]`.
    """
    bags.check("questions", question, 2, None)
    checks.state_batch(state, question.shape[0])
    rows = jnp.broadcast_to(jnp.arange(self.slots).reshape(1, -1), state.keys.shape[:2])
    window, (times, read) = self._choose(question, state.keys, rows, state.count)
    k, v = self._encode(store.take(state.keys, window), store.take(state.values, window))
    u, reads = self._reason(question, k, v, times, read)
    self._trace(times[:, None])
    hop_loop.measure([p[:, None] for p in reads], state.count[:, None] > 0)
    return self._logits(u, candidates)

  def _trace(self, times):
    if self.select is not None:
      trace(chosen=times)

  def _items(self, x, state, valid):
    bags.check("slots", x, 3, self.key_words + self.value_words)
    checks.state_batch(state, x.shape[0])
    checks.flag("valid", valid, x.shape[:2])
    if valid is None:
      return x, jnp.ones(x.shape[:2], bool)
    return jnp.where(valid[:, :, None], x, NIL), valid

  def _see(self, x, state, stored, reset):
    keys, values = x[:, :, : self.key_words], x[:, :, self.key_words :]
    seen = store.see(state.count, self.slots, stored, reset)
    return seen, store.past(state.keys, keys), store.past(state.values, values)

  def _keep(self, seen, keys, values) -> KeyValueState:
    return KeyValueState(store.keep(keys, seen), store.keep(values, seen), seen.count[:, -1])

  def _choose(self, question, keys, window, count):
    """The part of `window [B, N]` that a question reads, how long ago its slots were stored, and
    which of them count: `[B, select]` each."""
    times = jnp.broadcast_to(jnp.arange(self.slots).reshape(1, -1), window.shape)
    filled = store.is_filled(count, self.slots)
    if self.select is None:
      return window, (times, filled)
    filled = filled & store.shares(question, keys, self.skipped[...])
    _, chosen = jax.lax.top_k(jnp.where(filled, self.slots - times, 0), self.select)
    window, times, filled = (store.take(a, chosen) for a in (window, times, filled))
    return window, (times, filled)

  def _encode(self, keys, values):
    """Embeddings `[..., d]` of keys and of values, without their times."""
    keys = self._embed(keys, self.temporal), jnp.any(keys != NIL, axis=-1)
    own = self._embed(values, self.temporal)
    return keys[0], jnp.where(jnp.any(values != NIL, axis=-1)[..., None], own, keys[0])

  def _reason(self, question, keys, values, times, filled):
    """`q [B, d]` after the last hop, and for whoever measures the attention of each."""
    when = self._when(times)
    keys, values = (jnp.where(filled[..., None], a + when, 0) for a in (keys, values))

    def update(hop, q, o):
      q = q + o
      return self.rotations[hop](q) if hop < len(self.rotations) else q

    q, weigh = self._embed(question, False), lambda scores: hop_loop.soft(scores, filled)
    return hop_loop.loop(q, [(keys, values)] * self.hops, weigh, update)

  def _logits(self, q, candidates):
    table = without_nil(self.table if self.out is None else self.out)[: self.answers]
    if candidates is None:
      return q @ table.T
    if not jnp.issubdtype(candidates.dtype, jnp.integer) or candidates.ndim not in (2, 3):
      got = f"{candidates.dtype}{list(candidates.shape)}"
      raise ValueError(f"candidates are {got}; they must be ids [C, J] or [B, C, J]")
    weights = self._weights(candidates)
    found = bags.bags(table[:, None], candidates, weights)[..., 0, :]
    known = bags.known(candidates, self.answers)
    found = jnp.where(known[..., None], found, jnp.nan)
    return jnp.einsum("bd,cd->bc" if found.ndim == 2 else "bd,bcd->bc", q, found)

  def _weights(self, ids):
    words = ids != NIL
    if not self.scale:
      return words.astype(jnp.float32)
    return words / jnp.sqrt(jnp.maximum(jnp.sum(words, axis=-1, keepdims=True), 1))

  def _embed(self, ids, timed):
    """Bags `[..., J]` -> `[..., d]`; `timed` ones have one more word, not added here."""
    table, weights = without_nil(self.table)[: self.vocab, None], self._weights(ids)
    if self.position:
      places = jnp.cumsum(ids != NIL, axis=-1)
      place = places / jnp.maximum(places[..., -1:] + timed, 1)
      bag = bags.bags(table, ids, weights * (1 - place))
      bag = bag + self._tilt(bag.ndim) * bags.bags(table, ids, weights * (2 * place - 1))
    else:
      bag = bags.bags(table, ids, weights)
    return jnp.where(bags.known(ids, self.vocab)[..., None], bag[..., 0, :], jnp.nan)

  def _when(self, times):
    """Embeddings `[..., d]` of `times [...]`: 0 is the most recent slot."""
    if not self.temporal:
      return jnp.zeros((1,) * (times.ndim + 1))
    table = self.table[...][self.vocab :, None].astype(jnp.float32)
    rows = bags.bags(table, times[..., None], jnp.ones((*times.shape, 1)))[..., 0, :]
    return rows * self._tilt(rows.ndim) if self.position else rows

  def _tilt(self, ndim: int):
    """How much the place of a word counts in each number of its embedding, `[1, .., d]`."""
    return (jnp.arange(1, self.dim + 1) / self.dim).reshape((1,) * (ndim - 1) + (-1,))


def _uniform(deviation: float):
  bound = deviation * 3**0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
