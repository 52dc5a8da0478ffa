"""Rows of `memjax.transformer`."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Context, Memory
from memjax.testing import Task
from memjax.transformer import (
  Attention,
  Chunked,
  Conformer,
  FeedForward,
  LanguageModel,
  Rotary,
  Stack,
)
from memjax.transformer.rope_scaling import YaRN
from tests.registry import Row

SCALED = Rotary(scaling=YaRN(4.0, original_length=8))
CAPACITY = 32  # the laws insert padding, so calls get longer than `Row.length`

attention = functools.partial(Attention, heads=2, capacity=CAPACITY)
window = functools.partial(attention, window=3)
hidden = functools.partial(FeedForward, hidden=8)


def _stack(dim: int, rngs: nnx.Rngs, *, mixer=window) -> Memory:
  return Stack(dim, pattern=(mixer, hidden), repeats=2, rngs=rngs)


def _model(rngs: nnx.Rngs, *, dim: int = 4, mixer=window) -> Memory:
  body = functools.partial(_stack, mixer=mixer)
  return LanguageModel(11, dim, body=lambda dim, rngs: body(dim, rngs), rngs=rngs)


def _ids(key, batch, length):
  return jax.random.randint(key, (batch, length), 0, 11)


def _spans(batch, length):
  """The first quarter of each half of the tokens is a span: the laws cut at quarters. Positions
  have gaps."""
  quarter = jnp.arange(length) // (length // 4)
  span = jnp.where(quarter % 2 == 0, 1 + quarter, 0)
  tokens = {"span": span, "positions": 3 * jnp.arange(length)}
  return Context(tokens={name: jnp.tile(a[None], (batch, 1)) for name, a in tokens.items()})


ROWS: list[Row] = [
  Row("feed-forward", lambda rngs: hidden(4, rngs=rngs), dim=4),
  Row("feed-forward-gated", lambda rngs: hidden(4, gated=True, bias=True, rngs=rngs), dim=4),
  Row("attention", lambda rngs: attention(4, kv_heads=2, rotary=SCALED, rngs=rngs), dim=4),
  Row(
    "attention-window",
    lambda rngs: window(4, head_dim=4, sinks=1, kv_heads=1, qk_norm=True, bias=True, rngs=rngs),
    dim=4,
    task=Task(make=lambda rngs: attention(4, window=6, qk_norm=True, rngs=rngs)),
  ),
  Row(
    "attention-within-call",
    lambda rngs: attention(4, capacity=0, rngs=rngs),
    dim=4,
    exempt={"split": "with capacity 0 a call sees its own tokens only, as documented"},
  ),
  Row(
    "attention-spans",
    lambda rngs: attention(4, span="span", positions="positions", rngs=rngs),
    dim=4,
    extras=_spans,
    exempt={"split:decoding": "a span sees all of its own tokens, so it stands in one call"},
  ),
  Row(
    "chunked",
    lambda rngs: Chunked(4, memory=_stack, size=3, rngs=rngs),
    dim=4,
    task=Task(steps=1200),
  ),
  Row(
    "conformer",
    lambda rngs: Conformer(4, blocks=1, heads=1, hidden=4, kernel=3, rngs=rngs),
    dim=4,
    exempt={
      "split": "every frame sees all of its sequence, which stands in one call",
      "reset:several": "for the same reason: it compares with beginnings of longer calls",
    },
  ),
  # As many layers as rows: an axis taken by position would mix them.
  Row(
    "stack-attention",
    lambda rngs: _stack(4, rngs),
    dim=4,
    batch=2,
    task=Task(make=lambda rngs: _stack(4, rngs, mixer=attention)),
  ),
  Row(
    "language-model",
    lambda rngs: _model(rngs),
    dim=4,
    inputs=_ids,
    task=Task(make=lambda rngs: _model(rngs, dim=8, mixer=attention)),
  ),
]
