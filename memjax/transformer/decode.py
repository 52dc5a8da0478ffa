"""Decoding loops: one `while_loop` that stops when every row has ended.

A step takes `(tokens [R], state, done [R])` to `(logits [R, vocab], state)`; rows that are done
keep their state.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import take_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
  """What `generate` returns.

  Attributes:
    tokens: `[B, N]`, dtype of the prompts; `eos` (or 0) after a row's end.
    lengths: `[B] int32`, tokens of each row, `eos` included.
    log_probs: `[B, N] float32`, log-probability of each token under the model itself, whatever the
      temperature and cuts; 0 after a row's end, NaN where the model's logits are.
    state: the model's state after all these tokens.
  """

  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array
  state: Any = None


def _nothing(rows: tuple[int, ...], count: int, fill: int) -> Generated:
  tokens = jnp.full((*rows, count), fill, jnp.int32)
  return Generated(tokens, jnp.zeros(rows, jnp.int32), jnp.zeros(tokens.shape))


def _loop(body, count: int, carry):
  """Runs `(i, done, *rest) -> (done, *rest)` until all are done or `count` times."""
  going = lambda c: (c[0] < count) & ~jnp.all(c[1])  # noqa: E731
  return jax.lax.while_loop(going, lambda c: (c[0] + 1, *body(*c)), (0, *carry))[1:]


def sample(step, pick, logits, state, done, *, count: int, eos: int | None) -> Generated:
  """One continuation a row.

  Args:
    step: see above.
    pick: `(i, logits [B, vocab]) -> token [B]`, the choice at step i.
    logits: `[B, vocab]` after the prompts.
    state: the state after them.
    done: `[B] bool`, rows to leave alone.
    count: N.
    eos: id that ends a row, or None.
  """
  fill = 0 if eos is None else eos

  def body(i, done, logits, state, out):
    token = jnp.where(done, fill, pick(i, logits))
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
    out = Generated(
      tokens=out.tokens.at[:, i].set(token),
      lengths=out.lengths + ~done,
      log_probs=out.log_probs.at[:, i].set(jnp.where(done, 0.0, log_prob)),
    )
    logits, state = step(token, state, done)
    done = done if eos is None else done | (token == eos)
    return done, logits, state, out

  out = _nothing(done.shape, count, fill)
  _, _, state, out = _loop(body, count, (done, logits, state, out))
  return dataclasses.replace(out, state=state)


def pick_from(logits, key, *, temperature, top_k: int | None, top_p) -> jax.Array:
  """Draws from `softmax(logits / temperature)` cut to the `top_k` likeliest tokens, then to the
  fewest likeliest of these whose probabilities reach `top_p` (nucleus, arXiv 1904.09751).

  Of equal logits the smaller id is the likelier one.

  Args:
    logits: `[B, vocab]`.   key: JAX random key.
  """
  logits = logits / temperature
  if top_k is None and top_p is None:
    return jax.random.categorical(key, logits)
  logits, ids = jax.lax.top_k(logits, logits.shape[-1] if top_k is None else top_k)
  if top_p is not None:
    p = jax.nn.softmax(logits)
    logits = jnp.where(jnp.cumsum(p, axis=-1) - p < top_p, logits, -jnp.inf)
  choice = jax.random.categorical(key, logits)
  return jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0]


def beam_search(
  step, logits, state, done, *, count: int, eos: int | None, width: int, length_penalty
) -> Generated:
  """The best continuation of each row that a search over `width` hypotheses finds.

  Hypotheses, ended or not, stand in one pool; each step keeps the best by log-probability /
  length^length_penalty among the continuations of the open ones and the ended ones.

  Args:
    step: see above; its row b W + w is hypothesis w of row b.
    logits, state, done: of the B rows, as in `sample`.
    count, eos: as in `sample`.   width: W.
  """
  (batch, vocab), fill = logits.shape, 0 if eos is None else eos
  rows = jnp.arange(batch)[:, None] * width
  stay = jnp.where(jnp.arange(vocab) == fill, 0.0, -jnp.inf).reshape(1, 1, vocab)

  def rank(score, lengths):
    return score / jnp.maximum(lengths, 1).astype(jnp.float32) ** length_penalty

  def body(i, done, logits, state, score, out):
    log_probs = jax.nn.log_softmax(logits.reshape(batch, width, vocab))
    log_probs = jnp.where(done[..., None], stay, log_probs)
    total, lengths = score[..., None] + log_probs, out.lengths + ~done
    _, best = jax.lax.top_k(rank(total, lengths[..., None]).reshape(batch, -1), width)
    parent, token = best // vocab, best % vocab

    def follow(a):
      return jnp.take_along_axis(a, parent.reshape(batch, width, *(1,) * (a.ndim - 2)), axis=1)

    def choose(a):
      return jnp.take_along_axis(a.reshape(batch, -1), best, axis=1)

    done = follow(done)
    out = Generated(
      tokens=follow(out.tokens).at[:, :, i].set(token),
      lengths=follow(lengths),
      log_probs=follow(out.log_probs).at[:, :, i].set(choose(log_probs)),
    )
    state = take_rows(state, (rows + parent).reshape(-1))
    logits, state = step(token.reshape(-1), state, done.reshape(-1))
    done = done if eos is None else done | (token == eos)
    return done, logits, state, choose(total), out

  each = jnp.repeat(jnp.arange(batch), width)
  score = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)  # at first they are all the same
  score = jnp.broadcast_to(score[None], (batch, width))
  out = _nothing((batch, width), count, fill)
  start = (done[each].reshape(batch, width), logits[each], take_rows(state, each), score, out)
  _, _, state, score, out = _loop(body, count, start)
  best = jnp.argmax(rank(score, out.lengths), axis=1)
  out = jax.tree.map(lambda a: a[jnp.arange(batch), best], out)
  return dataclasses.replace(out, state=take_rows(state, rows[:, 0] + best))
