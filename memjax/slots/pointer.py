"""The pointer mixture network: an LSTM that names a word, or points at one of its last steps.

Li, Wang, Lyu, King, "Code Completion with Neural Attention and Pointer Networks", IJCAI 2018, arXiv
1711.09573; on byte pairs: Arkesteijn, Saldanha, Kostense, 2020, arXiv 2004.06343. Compared with the
authors' code (jack57lee/neuralCodeCompletion).

B batch, T tokens, D token width, C cells, N steps of the window, V words.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import (
  Memory,
  Replay,
  as_state,
  channel,
  checks,
  clean,
  late,
  leaf,
  param,
  scan,
  segments,
)
from memjax.core.layers import Linear
from memjax.core.replay import as_replay
from memjax.core.usage import measure, measure_slots
from memjax.slots.controllers import LSTM

MIXTURES = ("exact", "logits")
_LEAST = 1e-30  # of a probability whose logarithm is taken


@as_state
class PointerState:
  """The last N outputs of the LSTM, oldest first, `[B, N, C]`, their keys `h W_m`, how many of them
  there are, `[B] int32`, and one `LSTMState`; float32."""

  window: jax.Array = leaf("window", "memory")
  keys: jax.Array = leaf("window", "memory")
  filled: jax.Array = leaf()
  controller: Any


def pointer_targets(ids, *, vocab: int, window: int, unknown: int, reset=None):
  """What to predict at each token but the last: `ids [B, T]` -> classes, weights, `[B, T - 1]`.

  A word of the vocabulary is its id. Another one, which has an id >= `vocab`, is `vocab + d - 1`
  where the same stood d <= `window` tokens before it, the most recent one; else it is `unknown`,
  with weight 0. Inputs are `where(ids < vocab, ids, unknown)`. The first word of a sequence cannot
  be copied: no output stands before it. `reset [B, T]` as in the call.

  Returns:
    classes: int32.   weights: float32, 0 or 1.
  """
  ids = jnp.asarray(ids)
  length, new = ids.shape[1] - 1, ids[:, 1:]
  at = jnp.arange(length)[:, None] - jnp.arange(window)[None]  # of d = 1, 2, ...: where it stood
  same = (ids[:, jnp.maximum(at, 0)] == new[:, :, None]) & (at >= 1)[None]
  if reset is not None:
    sequence = segments(reset, (ids.shape[0], ids.shape[1]))[:, :-1]
    same = same & (sequence[:, jnp.maximum(at - 1, 0)] == sequence[:, :, None])
  known, found = new < vocab, jnp.any(same, axis=2)
  classes = jnp.where(found, vocab + jnp.argmax(same, axis=2), unknown)
  return jnp.where(known, new, classes).astype(jnp.int32), (known | found).astype(jnp.float32)


class PointerMixtureNetwork(Memory):
  """Logarithms of probabilities of V words and of N places to copy from, `[B, T, V + N]`.

      h_t = LSTM(x_t)
      a   = softmax(tanh(M W_m + h_t W_h) v),  c_t = a M     over the N outputs before h_t
      w   = tanh([h_t; c_t] W_a) W_v + b_v,    s = sigmoid([h_t; c_t] W_s + b_s)
      y_t = log [s softmax(w); (1 - s) reverse(a)]           "exact"
          = log softmax([s w; (1 - s) reverse(a)])           "logits"

  Class V + d - 1 is the word that stood d tokens before the one predicted: that which followed the
  d-th last output before h_t. While there is no output before h_t, a and c are 0 and s counts as 1.
  Its gradients are written out: `jax.grad` and `jax.vjp` take them, `jax.jvp` does not.

  Differences: the authors mix as in "logits", where w is not normalised and a is a probability, so
  that places have logits of at most 1; they attend to zeros where no output stands yet, and keep
  the window where the LSTM is reset. Keys `M W_m` are kept, not made anew. The attention to the
  parent of a syntax tree's node is left out.

  Args:
    dim: D, of what the caller embeds: in the paper 300 + 500 of a node's type and value.
    vocab: V, with the unknown word and the end.
    window: N.
    hidden: C.
    mixture: "exact" or "logits".
    learned_start: the LSTM's first state is trained; zeros otherwise.
    init: every matrix starts uniform in +-init but for the LSTM's.
    remat: None keeps the window of every token for back-propagation; "sqrt" that of about sqrt(T)
      tokens, and as many at a time, for one more forward pass; or a `Replay`.

  Measures (`core.usage`) `read_peak`, `slots_read` and `switch`, s where an output stands before.
  Traces (`inspect`) `read [B, T, 1, N]`, the last output first, and `switch [B, T]`.

  State: `PointerState`.
  """

  def __init__(
    self, dim: int, *, vocab: int, window: int = 50, hidden: int = 800, mixture: str = "exact",
    learned_start: bool = True, init: float = 0.05, remat: str | Replay | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, vocab=vocab, window=window, hidden=hidden)
    checks.one_of("mixture", mixture, MIXTURES)
    self.dim, self.vocab, self.window, self.hidden = dim, vocab, window, hidden
    self.mixture, self.remat = mixture, as_replay(remat)
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.controller = LSTM(dim, 0, hidden, learned_start=learned_start, **make)
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -init, init)  # noqa: E731
    make |= {"init": uniform}
    inner, outer = ("memory", "memory"), ("memory", "embed")  # not vocab: cut, it would cut windows
    self.key = Linear(hidden, hidden, axes=inner, **make)
    self.query = Linear(hidden, hidden, axes=inner, **make)
    self.score = param(rngs, uniform, (hidden,), axes=("memory",), dtype=param_dtype)
    self.joint = Linear(2 * hidden, hidden, axes=inner, **make)
    self.words = Linear(hidden, vocab, bias=True, axes=outer, **make)
    self.switch = Linear(2 * hidden, 1, bias=True, axes=inner, **make)

  def init_state(self, batch: int) -> PointerState:
    zeros = jnp.zeros((batch, self.window, self.hidden))
    filled = jnp.zeros(batch, jnp.int32)
    return PointerState(zeros, jnp.zeros_like(zeros), filled, self.controller.init_state(batch))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    looped = [late.factors(layer, *x.shape[:2]) for layer in (self.key, self.query)]
    inputs = self.controller.inputs(clean(x, valid)), looped
    init = None if reset is None else self.init_state(x.shape[0])
    (features, weights, some), state = scan(
      self.step, inputs, state, init=init, reset=reset, valid=valid, remat=self.remat
    )
    switch = self.switch(features)
    if channel.measuring():
      seen = some if valid is None else some & valid
      measure_slots(read=weights[:, :, None], valid=seen)
      measure("switch", jnp.where(some, jax.nn.sigmoid(switch[..., 0]), 1), seen)
    return self._mix(features, switch, weights, some).astype(x.dtype), state

  def step(self, inputs, state: PointerState, context=None):
    """One step: `[h; c] [B, 2 C]`, a with the last output first `[B, N]`, is there any `[B]`."""
    (token, (of_key, of_query)), batch = inputs, state.filled.shape[0]
    h, controller = self.controller.step(token, jnp.zeros((batch, 0)), state.controller)
    query, key = late.product(self.query, h, of_query), late.product(self.key, h, of_key)
    mixed = jnp.tanh(state.keys + query[:, None])
    scores = jnp.einsum("bnc,c->bn", mixed, self.score[...].astype(jnp.float32))
    there = jnp.arange(self.window)[None] >= self.window - state.filled[:, None]
    weights = jax.nn.softmax(jnp.where(there, scores, -1e30), axis=-1)
    weights = jnp.where(there, weights, 0)
    features = jnp.concatenate([h, jnp.einsum("bn,bnc->bc", weights, state.window)], axis=-1)
    push = lambda a, new: jnp.concatenate([a[:, 1:], new[:, None]], axis=1)  # noqa: E731
    filled = jnp.minimum(state.filled + 1, self.window)
    new = PointerState(push(state.window, h), push(state.keys, key), filled, controller)
    return (features, weights[:, ::-1], state.filled > 0), new

  def _mix(self, features, switch, weights, some):
    words, some = self.words(jnp.tanh(self.joint(features))), some[..., None]
    if self.mixture == "logits":
      s = jnp.where(some, jax.nn.sigmoid(switch), 1)
      places = jnp.where(weights > 0, (1 - s) * weights, jnp.log(_LEAST))
      return jax.nn.log_softmax(jnp.concatenate([s * words, places], axis=-1), axis=-1)
    named = jnp.where(some, jax.nn.log_sigmoid(switch), 0) + jax.nn.log_softmax(words, axis=-1)
    copied = jax.nn.log_sigmoid(-switch) + jnp.log(jnp.maximum(weights, _LEAST))
    return jnp.concatenate([named, copied], axis=-1)
