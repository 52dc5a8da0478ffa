"""Text from a language model: greedy, sampled or by beam search, after prompts of any lengths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from memjax.core import Context, checks
from memjax.transformer import decode
from memjax.transformer.decode import Generated
from memjax.transformer.language_model import LanguageModel
from memjax.transformer.prefill import feed, prefill, with_room


def generate(
  model: LanguageModel, prompts: jax.Array, *, max_new_tokens: int, valid: jax.Array | None = None,
  temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
  key: jax.Array | None = None, eos: int | None = None, beams: int = 1,
  length_penalty: float = 1.0, chunk: int | None = None, state=None, context: Context | None = None,
) -> Generated:  # fmt: skip
  """Continues prompts with the tokens that recomputing everything at each step would give.

  Attention built with `capacity=0` is given room for the prompts and the new tokens. Compiled once
  for each model structure, shape of prompts and choice of `max_new_tokens`, `top_k`, `eos`, `beams`
  and `chunk`.

  Args:
    model: any causal `LanguageModel`.
    prompts: `[B, P]` ids.
    max_new_tokens: N, tokens of the longest continuation.
    valid: `[B, P] bool`, the prompts' own tokens where they differ in length; padding may stand on
      either side. A row without any token gets no continuation.
    temperature: 0 takes the likeliest token (of equals the first); else the logits are divided by
      it, and tokens drawn.
    top_k: draw among the k likeliest tokens.
    top_p: draw among the fewest likeliest tokens whose probabilities reach it; after `top_k`.
    key: JAX random key, for a temperature > 0.
    eos: id that ends a row; None: every row has N tokens.
    beams: hypotheses of a beam search; 1: none.
    length_penalty: beams are compared by log-probability / length^length_penalty.
    chunk: most prompt tokens a call (a multiple of the granularity), to bound memory; None: all.
    state: of these rows before the prompts, as returned by a call before; None: `init_state`.
    context: shared arrays only.

  Raises:
    ValueError: an argument is out of range; prompts and new tokens do not fit an attention's
      capacity; the model is not causal.
  """
  _check_model(model, chunk, context)
  _check_prompts(model, prompts, valid, eos)
  _check_choice(model, max_new_tokens, temperature, top_k, top_p, key, beams)
  model = with_room(model, prompts.shape[1] + max_new_tokens, state)
  if state is not None:
    checks.state_batch(state, prompts.shape[0])
  numbers = {"temperature": temperature, "top_p": top_p, "length_penalty": length_penalty}
  return _generate(
    model, prompts, valid, state, key, context, numbers, count=max_new_tokens,
    greedy=temperature == 0, top_k=top_k, eos=eos, beams=beams, chunk=chunk,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("count", "greedy", "top_k", "eos", "beams", "chunk"))
def _generate(
  model, prompts, valid, state, key, context, numbers, *, count, greedy, top_k, eos, beams, chunk
):
  context, fresh = model.context(context), state is None
  state = model.init_state(prompts.shape[0]) if fresh else state
  logits, state = prefill(
    model, prompts, state, valid=valid, chunk=chunk, fresh=fresh, context=context
  )
  done = jnp.zeros(prompts.shape[:1], bool) if valid is None else ~jnp.any(valid, axis=1)
  together = valid is None and eos is None  # no row ends before another: no flag needed

  def step(tokens, state, done):
    live = None if together else ~done[:, None]
    last, state = feed(model, state, tokens[:, None], live, context=context)
    return model.logits(last), state

  def pick(i, logits):
    if greedy:
      return jnp.argmax(logits, axis=-1)
    options = {"temperature": numbers["temperature"], "top_k": top_k, "top_p": numbers["top_p"]}
    return decode.pick_from(logits, jax.random.fold_in(key, i), **options)

  if beams == 1:
    out = decode.sample(step, pick, logits, state, done, count=count, eos=eos)
  else:
    penalty = numbers["length_penalty"]
    search = {"count": count, "eos": eos, "width": beams, "length_penalty": penalty}
    out = decode.beam_search(step, logits, state, done, **search)
  return dataclasses.replace(out, tokens=out.tokens.astype(prompts.dtype))


def _check_model(model, chunk, context):
  if not isinstance(model, LanguageModel):
    raise TypeError(f"model is {type(model).__name__}; it must be a LanguageModel")
  if not model.causal:
    raise ValueError("the model is not causal: what it says of a token depends on later ones")
  if chunk is not None:
    checks.positive(chunk=chunk)
    if chunk % model.granularity:
      raise ValueError(f"chunk={chunk} is not a multiple of the granularity {model.granularity}")
  if context is not None and (context.tokens or context.key is not None):
    raise ValueError("context may hold shared arrays only: nobody has context.tokens of new tokens")


def _check_prompts(model, prompts, valid, eos):
  shape = tuple(prompts.shape)
  if len(shape) != 2 or not shape[1] or not jnp.issubdtype(prompts.dtype, jnp.integer):
    raise ValueError(
      f"prompts is {prompts.dtype}{list(shape)}; it must be ids [B, P] with P >= 1 "
      "(prompts of different lengths: pad them and give valid)"
    )
  checks.flag("valid", valid, shape)
  if eos is not None and not 0 <= eos < model.vocab:
    raise ValueError(f"eos={eos!r} is not an id; vocab={model.vocab} has 0 to {model.vocab - 1}")
  if isinstance(prompts, Tracer) or isinstance(valid, Tracer):
    return
  ids = np.asarray(prompts) if valid is None else np.asarray(prompts)[np.asarray(valid)]
  if ids.size and not (ids.min() >= 0 and ids.max() < model.vocab):
    raise ValueError(
      f"prompts hold ids {ids.min()} to {ids.max()}; vocab={model.vocab} has 0 to {model.vocab - 1}"
    )


def _check_choice(model, max_new_tokens, temperature, top_k, top_p, key, beams):
  checks.positive(max_new_tokens=max_new_tokens, beams=beams)
  if not temperature >= 0:
    raise ValueError(f"temperature={temperature!r} must be >= 0")
  if temperature == 0 and (top_k is not None or top_p is not None):
    raise ValueError("top_k and top_p are for drawing tokens: give a temperature > 0, such as 1.0")
  if temperature > 0 and key is None:
    raise ValueError(f"temperature={temperature} draws tokens: give a key, jax.random.key(0)")
  if temperature > 0 and beams > 1:
    raise ValueError(f"beams={beams} searches and draws nothing: temperature must be 0")
  if top_k is not None:
    checks.positive(top_k=top_k)
    if top_k > model.vocab:
      raise ValueError(f"top_k={top_k} exceeds vocab={model.vocab}")
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p={top_p!r} must lie in (0, 1]")
