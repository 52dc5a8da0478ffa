"""From the `model` part of a recipe to a language model: a transformer with a memory in place of
some feed-forward layers."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import flops
from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.slots import ELMUR, LM2, PMI, ConformerNTM, NeuralTuringMachine, RelationalMemory
from memjax.transformer import Attention, FeedForward, LanguageModel, Rotary, Stack, rope_scaling

QK_NORM = {"none": False, "query": "query", "both": True}
POOL = "values"  # the name of the pool of values that all memory layers share


def _product_keys(model):
  return functools.partial(
    ProductKeyMemory,
    keys=model.memory_keys,
    heads=model.memory_heads,
    top_k=model.memory_top_k,
    query_dim=model.memory_query_dim,
    query_norm=None if model.memory_query_norm == "none" else model.memory_query_norm,
  )


def _memory_plus(model):
  return functools.partial(
    MemoryPlus,
    keys=model.memory_keys,
    heads=model.memory_heads,
    top_k=model.memory_top_k,
    query_dim=model.memory_query_dim,
    values=POOL,
    qk_norm=QK_NORM[model.memory_qk_norm],
  )


def _ntm(model):
  return functools.partial(
    NeuralTuringMachine, slots=model.memory_slots, width=model.memory_slot_width
  )


def _rmc(model):
  return functools.partial(
    RelationalMemory,
    slots=model.memory_slots,
    heads=model.memory_heads,
    head_size=model.memory_slot_width,
  )


def _conformer_ntm(model):
  return functools.partial(
    ConformerNTM, slots=model.memory_slots, width=model.memory_slot_width, residual=True
  )


def _lm2(model):
  return functools.partial(
    LM2, slots=model.memory_slots, segment=model.memory_segment, heads=model.memory_heads
  )


def _elmur(model):
  return functools.partial(
    ELMUR,
    heads=model.heads,
    segment=model.memory_segment,
    slots=model.memory_slots,
    hidden=model.hidden or 4 * model.dim,
    pre_norm=True,  # trains faster between residuals, though a slot then grows with every write
  )


def _pmi(model):
  return functools.partial(
    PMI, segment=model.memory_segment, slots=model.memory_slots, heads=model.memory_heads
  )


MEMORIES = {
  "memory_plus": _memory_plus, "product_keys": _product_keys, "ntm": _ntm, "rmc": _rmc, "lm2": _lm2,
  "elmur": _elmur, "pmi": _pmi, "conformer_ntm": _conformer_ntm,
}  # fmt: skip
# Where they stand in a block of attention and feed-forward, if not in place of the latter.
PLACES = {
  "lm2": lambda made, attention, feed: (functools.partial(made, attention=attention), feed),
  "elmur": lambda made, attention, feed: (made,),
  "pmi": lambda made, attention, feed: (made, feed),
  "conformer_ntm": lambda made, attention, feed: (attention, feed, made),
}


ROPE = {
  "": lambda scale, length: None,
  "linear": lambda scale, length: rope_scaling.PositionInterpolation(scale),
  "ntk": lambda scale, length: rope_scaling.NTK(scale),
  "dynamic_ntk": lambda scale, length: rope_scaling.DynamicNTK(length),
  "by_parts": rope_scaling.NTKByParts,
  "yarn": rope_scaling.YaRN,
  "llama3": rope_scaling.llama3,
}


def rotary(model) -> Rotary:
  """The rotary positions that `model.rope_*` of a recipe name.

  Raises:
    ValueError: an unknown method, or a scale or length that it cannot have.
  """
  if model.rope_method not in ROPE:
    names = ", ".join(filter(None, ROPE))
    raise ValueError(f"config.model.rope_method={model.rope_method!r} is not one of {names}, or ''")
  try:
    scaling = ROPE[model.rope_method](model.rope_scale, model.rope_original_length)
    return Rotary(model.rope_base, scaling)
  except ValueError as error:
    raise ValueError(f"config.model.rope_*: {error}") from error


def build(model, vocab: int, *, memory: str, seed: int) -> LanguageModel:
  """The language model of a recipe.

  Args:
    model: the recipe's `model` part.   vocab: number of tokens.   seed: of the initial parameters.
    memory: a name in `MEMORIES`, put in place of the feed-forward of `model.memory_layers`; "lm2"
      goes around their attention, "pmi" takes its place, "elmur" is the whole block and
      "conformer_ntm" follows it; "none": the dense twin.

  Raises:
    ValueError: an unknown memory, a layer that is not there, or a bad scaling of positions.
  """
  if memory not in ("none", *MEMORIES):
    raise ValueError(f"config.model.memory={memory!r} is not one of none, {', '.join(MEMORIES)}")
  outside = [layer for layer in model.memory_layers if not 0 <= layer < model.layers]
  if outside:
    raise ValueError(
      f"config.model.memory_layers holds {outside}, but the layers are 0 to {model.layers - 1}"
    )
  attention, feed_forward = layers(model, window=model.window)
  exceptions, dtype = {}, jnp.dtype(model.get("table_dtype", "float32"))
  if memory != "none":
    place = PLACES.get(memory, lambda made, attention, feed: (attention, made))
    block = place(MEMORIES[memory](model), attention, feed_forward)
    exceptions = dict.fromkeys(model.memory_layers, block)
  shared = (
    {POOL: functools.partial(value_pool, model.memory_keys**2, model.dim, param_dtype=dtype)}
    if memory == "memory_plus"
    else {}
  )
  body = functools.partial(
    Stack,
    pattern=(attention, feed_forward),
    repeats=model.layers,
    exceptions=exceptions,
    dropout=model.dropout,
    remat=model.remat or None,
  )
  return LanguageModel(
    vocab,
    model.dim,
    body=body,
    tied=model.tied,
    dtype=jnp.dtype(model.dtype),
    shared=shared,
    rngs=nnx.Rngs(seed),
  )


def layers(model, **options):
  """The factories of a block's attention and feed-forward.

  Args:
    model: the recipe's `model` part.   **options: more for the attention.
  """
  attention = functools.partial(
    Attention,
    heads=model.heads,
    kv_heads=model.get("kv_heads"),
    rotary=rotary(model) if "rope_method" in model else Rotary(),
    **options,
  )
  feed_forward = functools.partial(
    FeedForward,
    hidden=model.hidden or 4 * model.dim,
    activation=model.get("activation", "gelu"),
    gated=model.get("gated", False),
  )
  return attention, feed_forward


def parameters(model) -> int:
  """Number of parameters."""
  return sum(array.size for array in jax.tree.leaves(model))


def flops_per_token(model, length: int) -> float:
  """Floating-point operations of one token's forward pass in a sequence of `length` tokens
  (backward: twice that)."""
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
  return flops.count(lambda model, ids: model(ids, model.init_state(1))[0], model, ids) / length
