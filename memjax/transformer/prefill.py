"""Prompts of different lengths into a model's state, in as few calls as its memories allow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from memjax.core import Context, Memory, channel, submodules
from memjax.transformer.attention import Attention
from memjax.transformer.cache import KVCache
from memjax.transformer.language_model import LanguageModel


def with_room(model: LanguageModel, tokens: int, state=None) -> LanguageModel:
  """The model with every `Attention` of capacity 0 carrying `tokens` tokens; parameters shared.

  Attention inside a memory that starts its body afresh is given as many as that body sees: the
  memory's attribute `body_tokens`.

  Args:
    model: any.
    tokens: to be fed from now on.
    state: of the model, where some are already in it.

  Raises:
    ValueError: an attention has a capacity, but a smaller one; or has none, but there is a state.
  """
  used = 0 if state is None or model.granularity > 1 else _used(state)
  copy = jax.tree.map(lambda a: a, model)
  for attention, needed in _attentions(copy, tokens):
    if attention.capacity == 0 and state is not None:
      raise ValueError(
        "state was given, but an Attention of the model has capacity=0 and carries nothing: "
        "use replace(model, capacity=n) before the first call, with room for all its tokens"
      )
    if attention.capacity == 0:
      attention.capacity = needed
    elif attention.window is None and needed + used > attention.capacity:
      raise ValueError(
        f"{needed} tokens of prompt and continuation after {used} in the state exceed an "
        f"Attention's capacity={attention.capacity}; use replace(model, capacity={needed + used})"
      )
  return copy


def _attentions(module, tokens: int):
  if isinstance(module, Attention):
    yield module, tokens
  tokens = getattr(module, "body_tokens", tokens)
  for child in vars(module).values():
    if isinstance(child, nnx.Module):
      yield from _attentions(child, tokens)


def _used(state) -> int:
  """Tokens in the fullest cache, as far as they are known (while tracing they are not)."""
  nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, KVCache))
  lengths = [node.length for node in nodes if isinstance(node, KVCache)]
  return max((int(np.max(n)) for n in lengths if not isinstance(n, Tracer)), default=0)


def prefill(
  model: LanguageModel, prompts: jax.Array, state, *, valid: jax.Array | None = None,
  chunk: int | None = None, fresh: bool = False, context: Context | None = None,
):  # fmt: skip
  """Feeds prompts of different lengths.

  A memory over segments takes whole segments or a part of one. Rows that start at a segment's
  border (`fresh`) are moved to the left and fed their whole segments, then the rest of each; rows
  that may start anywhere are fed one token a call.

  Args:
    model: any causal `LanguageModel`; its attention has room for the prompts.
    prompts: `[B, P]` ids.
    state: of these rows.
    valid: `[B, P] bool` or None.
    chunk: most tokens a call, a multiple of the granularity.
    fresh: `state` is one of `init_state`.
    context: shared arrays only.

  Returns:
    Logits `[B, vocab]` after each row's last token (unspecified in rows without), and the state.
  """
  run = functools.partial(feed, model, context=context)
  length, g = prompts.shape[1], model.granularity
  if g == 1 or not fresh:
    last, state = run(state, prompts, valid, 1 if g > 1 else chunk)
    return model.logits(last), state
  # Granularities that differ inside may refuse a part of the largest: one token suits all.
  inner = {module.granularity for module in submodules(model) if isinstance(module, Memory)}
  part = None if inner <= {1, g} else 1
  whole, rest = prompts[:, : length // g * g], prompts[:, length // g * g :]
  whole_valid = rest_valid = None
  if valid is not None:
    order = jnp.argsort(~valid, axis=1, stable=True)  # a row's own tokens first
    prompts = jnp.take_along_axis(prompts, order, axis=1)
    count = jnp.sum(valid, axis=1, dtype=jnp.int32)[:, None]
    end = count // g * g
    whole, whole_valid = prompts[:, : whole.shape[1]], jnp.arange(whole.shape[1])[None] < end
    at = end + jnp.arange(min(g - 1, length))[None]
    rest = jnp.take_along_axis(prompts, jnp.minimum(at, length - 1), axis=1)
    rest_valid = at < count
  last = jnp.zeros((prompts.shape[0], model.dim), model.dtype)
  if whole.size:
    last, state = run(state, whole, whole_valid, chunk, last)
  if rest.size:
    last, state = run(state, rest, rest_valid, part, last)
  return model.logits(last), state


def feed(model, state, ids, valid, chunk=None, last=None, *, context=None):
  """Calls the body on `ids [B, T]`, `chunk` tokens a call (None: all).

  Returns:
    The body's output `[B, D]` at each row's last valid token, `last` (or 0) in rows without; and
    the state.
  """
  batch, length = ids.shape
  chunk = length if chunk is None else min(chunk, length)
  last = jnp.zeros((batch, model.dim), model.dtype) if last is None else last
  padding = -length % chunk
  if padding:
    valid = jnp.ones(ids.shape, bool) if valid is None else valid
    ids, valid = (jnp.pad(a, ((0, 0), (0, padding))) for a in (ids, valid))

  def call(carry, inputs):
    last, state = carry
    ids, valid = inputs
    x = model.embed(ids if valid is None else jnp.where(valid, ids, 0))
    h, state = model.body(x, state, valid=valid, context=context)
    if valid is None:
      return (h[:, -1], state), None
    end = chunk - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    h = jnp.take_along_axis(h, end[:, None, None], axis=1)[:, 0]
    return (jnp.where(jnp.any(valid, axis=1)[:, None], h, last), state), None

  with channel.muted():
    if length == chunk:
      return call((last, state), (ids, valid))[0]
    cut = lambda a: jnp.moveaxis(a.reshape(batch, -1, chunk), 1, 0)  # noqa: E731
    return jax.lax.scan(call, (last, state), jax.tree.map(cut, (ids, valid)))[0]
