"""MEMO: facts whose items stay apart, read by several heads for as many hops as a question takes.

Banino, Badia, Koster, Chadwick, Zambaldi, Hassabis, Barry, Botvinick, Kumaran, Blundell, "MEMO: A
Deep Network for Flexible Combination of Episodic Memories", ICLR 2020, arXiv 2001.10913. The
authors' code of the model is not public.

B batch, T facts in a call, N slots, S items of a fact, O ids or width of an item, E embedding
width, H heads, d width of a head, D = H d, K hops at most.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, as_state, bounded, channel, checks, clean, leaf, param
from memjax.core.layers import LayerNorm, Linear, dropout
from memjax.core.usage import measure
from memjax.slots import bags, halting, store
from memjax.slots import hops as hop_loop
from memjax.slots.side_by_side import Facts

_LARGEST = 1e6  # of the numbers of an item that is a vector


@as_state
class MEMOState:
  """Facts, `[B, N, S]` int32 or `[B, N, S O]` float32, the most recent first; the first `count [B]`
  slots are filled."""

  facts: jax.Array = leaf("slots", "memory")
  count: jax.Array = leaf()


class MEMOLosses(NamedTuple):
  """Of a batch of questions, `[B]` each.

  Attributes:
    answer: nats of the right answer where it halted.
    halting: `halting.losses`.
    right: bool, whether the likeliest answer there is right: the reward.
    hops: int32, how many it made.
  """

  answer: jax.Array
  halting: halting.HaltingLosses
  right: jax.Array
  hops: jax.Array


class _Reading(NamedTuple):
  """Logits `[B, answers]`, hops made `[B]`; of each hop the policy's logits and values `[K, B]`,
  and attention `[B, K, H, N]`, () when nobody measures."""

  logits: jax.Array
  hops: jax.Array
  halts: jax.Array
  values: jax.Array
  reads: jax.Array | tuple


class MEMO(Memory):
  """Answers a question by up to K readings, with shared weights, of the last N facts.

      c_ij = item_ij Wc  [E],   k_i^h = vec(c_i) Wk^h,  v_i^h = vec(c_i) Wv^h  [d]
      q_0 = vec(c_question) Wq  [D],   w^h = softmax_i(q_t^h Wh^h . k_i^h / sqrt(d))
      q_{t+1} = LN(dropout(concat_h(sum_i dropout(w^h)_i v_i^h) Wo) + q_t)
      logits = dropout(relu(q_{t+1} Wr)) Wa

  The S items of a fact are set side by side, not added: see `side_by_side.Facts`.
  A policy (`halting.Policy`) sees the attention of each hop and says whether to answer, its first
  w_0 being the same for all facts. It has its own losses, no gradient of which reaches the rest, as
  none of the answer's reaches it; its parameters are those under "policy/".

  Over `[B, T, S]` int32 facts: each is asked, as a question, against those stored before it, giving
  logits `[B, T, answers]`, and then stored, unless `context.tokens["question"]` (`[B, T]` bool,
  optional) says that it only asks. `write` and `read` do one or the other for whole batches, `loss`
  trains. Id 0 pads facts and questions: its embedding is zero and stays zero. An id outside
  0..vocab-1 gives NaN wherever it is read. With `context.key` dropout and hops are drawn; without,
  it halts at the first hop at which that is the likelier. All K hops are computed: rows halt apart.

  Our reading, where the paper is not at hand: the order of norm, dropout and residual, Wh, w_0, the
  policy's sizes, the loss's weights, and `temporal`. Different: N slots, of which the oldest is
  forgotten. The policy sees the attention that dropout has not touched.

  Args:
    vocab: O.
    dim: D; `heads` divides it.
    slots, items, heads, hops: N, S, H and K.
    policy: Z, the policy's width; None: always K hops.
    halt_bias: the logit of halting at first; less than 0, so that it learns to answer after some
      hops before it learns after how many.
    embed: E; d when None.
    answers: the classes are ids 0..answers-1; `vocab` when None.
    temporal: one item more in each fact, which tells how many facts ago it was stored.
    vectors: items are vectors of width O instead of ids, such as embeddings of pictures: facts are
      `[B, T, S O]` float, and zeros pad.
    norm: LN as above; False: none.
    dropout: rate, in attention, hops and answer.

  Measures (`core.usage`) `read_peak` and `slots_read` of every hop that was made, and `hops`.

  State: `MEMOState`.
  """

  def __init__(
    self, vocab: int, dim: int = 128, *, slots: int, items: int, heads: int = 4, hops: int = 10,
    policy: int | None = 32, halt_bias: float = -1.0, embed: int | None = None,
    answers: int | None = None, temporal: bool = False, vectors: bool = False, norm: bool = True,
    dropout: float = 0.0, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.divides("heads", heads, "dim", dim)
    answers, embed = vocab if answers is None else answers, embed or dim // heads
    checks.positive(vocab=vocab, slots=slots, items=items, hops=hops, answers=answers, embed=embed)
    checks.positive(**({} if policy is None else {"policy": policy}))
    checks.fraction(dropout=dropout)
    self.vocab, self.dim, self.slots, self.items = vocab, dim, slots, items
    self.heads, self.hops, self.vectors, self.dropout = heads, hops, vectors, dropout
    size = dim // heads
    kinds: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
    given = {"items": items, "embed": embed, "heads": heads, "vectors": vectors}
    self.facts = Facts(vocab, dim, **given, slots=slots if temporal else None, **kinds)
    linear = functools.partial(Linear, **kinds)
    self.query = linear(items * embed, dim, axes=("embed", "heads"))
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, batch_axis=0)
    shape, axes = (heads, size, size), ("heads", "memory", "memory")
    self.turn = param(rngs, init, shape, axes=axes, dtype=param_dtype)
    self.out = linear(dim, dim, axes=("heads", "embed"))
    self.norm = LayerNorm(dim, **kinds) if norm else None
    self.hidden = linear(dim, dim, axes=("embed", "mlp"))
    self.answer = linear(dim, answers, axes=("mlp", "vocab"))
    watch = functools.partial(halting.Policy, heads, slots, hops, bias=halt_bias, **kinds)
    self.policy = None if policy is None else watch(policy)

  def init_state(self, batch: int) -> MEMOState:
    width = self.items * self.vocab if self.vectors else self.items
    empty = jnp.zeros((batch, self.slots, width), jnp.float32 if self.vectors else jnp.int32)
    return MEMOState(empty, jnp.zeros(batch, jnp.int32))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    question = None if context is None else context.tokens.get("question")
    facts, stored = self._facts(x, state, valid)
    checks.flag("reset", reset, x.shape[:2])
    checks.flag('context.tokens["question"]', question, x.shape[:2])
    stored = stored if question is None else stored & ~question
    seen = store.see(state.count, self.slots, stored, reset)
    past = store.past(self._reachable(state, reset), facts)
    keys, values = self.facts(past)
    per_token = None
    if context is not None and context.key is not None:
      per_token = jax.random.split(context.key, x.shape[1])[None]

    def ask(question, window, count, keys_t):
      known = store.take(keys, window), store.take(values, window)
      return self._reason(question, *known, count, None if keys_t is None else keys_t[0])

    made = store.ask(ask, facts, seen.window[:, :-1], seen.count[:, :-1], per_token)
    self._measure(made.reads, made.hops, valid if question is None else question)
    y = made.logits.astype(x.dtype if self.vectors else jnp.float32)
    return y, MEMOState(store.keep(past, seen), seen.count[:, -1])

  def write(self, items: jax.Array, state: MEMOState, *, valid=None) -> MEMOState:
    """Stores facts `items`, `[B, T, S]` or `[B, T, S O]`, in order; those not `valid [B, T]` are
    left out."""
    facts, stored = self._facts(items, state, valid)
    seen = store.see(state.count, self.slots, stored, None)
    return MEMOState(store.keep(store.past(state.facts, facts), seen), seen.count[:, -1])

  def read(self, question: jax.Array, state: MEMOState, *, context=None) -> jax.Array:
    """Logits `[B, answers]` float32 for questions, `[B, S]` or `[B, S O]`; `context.key` draws
    dropout and hops."""
    return self._read(question, state, None if context is None else context.key).logits

  def losses(
    self, question, answer, state: MEMOState, *, key=None, discount: float = 1.0,
    horizon: int | None = None,
  ) -> MEMOLosses:  # fmt: skip
    """What questions cost that have the answers `[B]`, ids; see `halting.losses`.

    Args:
      key: draws dropout and hops; None, to validate: as `read` without a key.
    """
    made = self._read(question, state, key)
    log_p = jax.nn.log_softmax(made.logits, axis=-1)
    nats = -jnp.take_along_axis(log_p, answer[:, None], axis=1)[:, 0]
    right = jnp.argmax(made.logits, axis=-1) == answer
    given = {"discount": discount, "horizon": horizon}
    watched = halting.losses(made.halts, made.values, made.hops, right, **given)
    if self.policy is None:
      watched = jax.tree.map(jnp.zeros_like, watched)
    return MEMOLosses(nats, watched, right, made.hops)

  def loss(
    self, question, answer, state: MEMOState, *, key=None, policy_weight: float = 1.0,
    value_weight: float = 0.5, hops_weight: float = 0.001, **returns,
  ) -> jax.Array:  # fmt: skip
    """The sum of `losses`, `[B]`: `answer + policy_weight policy + value_weight value + hops_weight
    hops`. With much `hops_weight` it answers after the first hop before it has learned to use more;
    `returns` are `discount` and `horizon`."""
    found = self.losses(question, answer, state, key=key, **returns)
    policy, value, hops = found.halting
    return found.answer + policy_weight * policy + value_weight * value + hops_weight * hops

  def _facts(self, x, state, valid):
    """Facts without padding tokens, and which of them are valid, `[B, T]`."""
    if self.vectors:
      checks.call(self, x, state, None, valid, dim=self.items * self.vocab)
      x = bounded(x.astype(jnp.float32), _LARGEST)
    else:
      bags.check("facts", x, 3, self.items, "items")
      checks.state_batch(state, x.shape[0])
      checks.flag("valid", valid, x.shape[:2])
    return clean(x, valid), jnp.ones(x.shape[:2], bool) if valid is None else valid

  def _reachable(self, state, reset):
    """The slots `[B, N, ...]` that any token of a call sees; what is in others leaves no NaN in
    gradients."""
    filled = store.is_filled(state.count, self.slots)
    return clean(state.facts, filled if reset is None else filled & ~reset[:, :1])

  def _read(self, question, state, key) -> _Reading:
    if self.vectors:
      question = self._facts(question[:, None], state, None)[0][:, 0]
    else:
      bags.check("questions", question, 2, self.items, "items")
      checks.state_batch(state, question.shape[0])
    known = self.facts(self._reachable(state, None))
    made = self._reason(question, *known, state.count, key)
    reads = jax.tree.map(lambda a: a[:, None], made.reads)
    self._measure(reads, made.hops[:, None], state.count[:, None] > 0)
    return made

  def _reason(self, question, keys, values, count, key) -> _Reading:
    """Questions `[B, S]` on facts as `Facts` makes them, `[B, N, H, d]`, `count [B]` of them."""
    filled = store.is_filled(count, self.slots)
    keys, values = (
      jnp.moveaxis(jnp.where(filled[:, :, None, None], a + b[None], 0), 2, 1)
      for a, b in zip((keys, values), self.facts.when(), strict=True)
    )
    c, known = self.facts.embed(question)
    q = jnp.where(known[:, None], self.query(c), jnp.nan)
    before = jnp.broadcast_to(filled[:, None], (len(q), self.heads, self.slots))
    before = before / jnp.maximum(count, 1)[:, None, None]
    per_hop, chosen, answered = None, None, None
    if key is not None:
      key, chosen, answered = jax.random.split(key, 3)
      per_hop = jax.random.split(key, self.hops)

    def hop(carry, inputs):
      q, before, z = carry
      index, key = inputs
      q, p = self._hop(q, keys, values, filled, key)
      halt, value = jnp.zeros(len(q)), jnp.zeros(len(q))
      if self.policy is not None:
        halt, value, z = self.policy(p, before, index, z)
      return (q, p, z), (q, p if channel.measuring() else (), halt, value)

    z = jnp.zeros((len(q), 0)) if self.policy is None else self.policy.first(len(q))
    given = jnp.arange(self.hops), per_hop
    _, (q, reads, halts, expected) = jax.lax.scan(hop, (q, before, z), given)
    made = jnp.full(q.shape[1], self.hops)
    if self.policy is not None:
      made = halting.choose(halts, chosen)
    q = jnp.take_along_axis(q, (made - 1)[None, :, None], axis=0)[0]
    inner = dropout(jax.nn.relu(self.hidden(q)), self.dropout, answered)
    reads = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), reads)
    return _Reading(self.answer(inner), made, halts, expected, reads)

  def _hop(self, q, keys, values, filled, key):
    """`q_{t+1} [B, D]` and w `[B, H, N]`."""
    attend, change = (None, None) if key is None else tuple(jax.random.split(key))
    u = q.reshape(len(q), self.heads, -1)
    u = jnp.einsum("bhd,hde->bhe", u, self.turn[...].astype(q.dtype)) * u.shape[-1] ** -0.5
    weigh = lambda scores: hop_loop.soft(scores, filled[:, None])  # noqa: E731
    drop = lambda p: dropout(p, self.dropout, attend)  # noqa: E731
    o, p = hop_loop.read(u, keys, values, weigh, drop)
    q = q + dropout(self.out(o.reshape(q.shape)), self.dropout, change)
    return (q if self.norm is None else self.norm(q)), p

  def _measure(self, reads, made, asked):
    """Measures attention `[B, T, K, H, N]` and the number of hops `[B, T]`."""
    if channel.measuring():
      hop_loop.measure(list(jnp.moveaxis(reads, 2, 0)), asked, made)
      measure("hops", made, asked)
