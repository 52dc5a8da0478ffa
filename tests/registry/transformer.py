"""Rows of `memjax.transformer`."""

import functools

import jax

from memjax.transformer import FeedForward, LanguageModel, Stack
from tests.registry import Row


def _stack(rngs):
  return Stack(4, pattern=(functools.partial(FeedForward, hidden=8),), repeats=2, rngs=rngs)


def _ids(key, batch, length):
  return jax.random.randint(key, (batch, length), 0, 11)


ROWS: list[Row] = [
  Row("feed-forward", lambda rngs: FeedForward(4, hidden=8, rngs=rngs), dim=4),
  Row("feed-forward-gated", lambda rngs: FeedForward(4, hidden=8, gated=True, bias=True, rngs=rngs), dim=4),
  Row("stack", _stack, dim=4, batch=2),  # as many layers as rows: an axis taken by position mixes them
  Row(
    "language-model",
    lambda rngs: LanguageModel(11, 4, body=lambda dim, rngs: _stack(rngs), rngs=rngs),
    dim=4,
    inputs=_ids,
  ),
]
