"""The sizes at which the table of memories counts bytes and operations.

Width 256, the constructor's defaults, and for what has none a size from its paper or a usual one. A
memory that is not here and has no default is counted at the size of its row in `tests/registry`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from memjax.core import Context
from memjax.parametric import UltraMem
from memjax.slots import PMI, MemoriaRead, SlotRead
from memjax.transformer import Attention, FeedForward, Stack

DIM, TOKENS, VOCAB = 256, 256, 8192


@dataclasses.dataclass(frozen=True)
class Size:
  """How one memory is made and called.

  Attributes:
    options: keyword arguments of its constructor.
    args: positional ones.
    ids: None: x is `[B, T, D]`; or the shape of a token of ids, () for `[B, T]`.
    extras: `(batch, tokens) -> Context`.
  """

  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  args: tuple[int, ...] = (DIM,)
  ids: tuple[int, ...] | None = None
  extras: Callable[[int, int], Context] | None = None

  def __str__(self) -> str:
    """The arguments that are numbers or names."""
    shown = [f"{k}={v!r}" for k, v in self.options.items() if not callable(v) and not _parts(v)]
    return ", ".join([*map(str, self.args), *shown])


def _parts(value) -> bool:
  return isinstance(value, tuple) and any(map(callable, value))


def _layers(*factories):
  return functools.partial(Stack, pattern=factories)


def _shared(**shapes):
  """A context of arrays shared by all tokens, `[batch, *shape]` float32 or bool."""

  def make(batch, tokens):
    arrays = {k: jnp.zeros((batch, *shape), dtype) for k, (shape, dtype) in shapes.items()}
    return Context(shared=arrays)

  return make


def _places(batch, tokens):
  return Context(tokens={"place": jnp.zeros((batch, tokens), jnp.int32)})


def _span(batch, tokens):
  return Context(tokens={"span": jnp.zeros((batch, tokens), jnp.int32)})


_attention = functools.partial(Attention, heads=4)
_both = functools.partial(_attention, span="span")
_layer = (_attention, FeedForward)
_read = functools.partial(SlotRead, heads=4)
_encoded = functools.partial(SlotRead, heads=4, source="encoded")
_engrams = {
  "working": ((50, DIM), jnp.float32),
  "reminded": ((100, DIM), jnp.float32),
  "working_seen": ((50,), jnp.bool_),
  "reminded_seen": ((100,), jnp.bool_),
}
_segment = {"segment": 64, "slots": 64, "heads": 4}

SIZES: dict[str, Size] = {
  "Attention": Size({"heads": 4, "capacity": TOKENS}),
  "CHIME": Size(
    {
      "encoder": _layers(functools.partial(_both, capacity=128), FeedForward),
      "context_length": 96,
      "answer_length": 32,
    }
  ),
  "Chunked": Size({"memory": functools.partial(_attention, capacity=TOKENS), "size": 64}),
  "ELMUR": Size({"heads": 4, "segment": 64}),
  "EndToEndMemoryNetwork": Size({"words": 8}, (VOCAB, DIM), (8,)),
  "KeyValueMemoryNetwork": Size({"key_words": 8}, (VOCAB, DIM), (9,)),
  "LM2": Size({"slots": 64}),
  "LanguageModel": Size({"body": _layers(*_layer)}, (VOCAB, DIM), ()),
  "MEMO": Size({"slots": 50, "items": 8}, (VOCAB, DIM), (8,)),
  "MLPMemory": Size({"layers": 4, "vocab": VOCAB}),
  "MemBART": Size({"decoder": _layers(_attention, _encoded, FeedForward), **_segment}),
  "Memformer": Size({"encoder": _layers(_attention, _read, FeedForward), **_segment}),
  "Memoria": Size({"body": _layers(_attention, MemoriaRead, FeedForward), "segment": 64}),
  "MemoriaRead": Size(extras=_shared(**_engrams)),
  "MemoryNetwork": Size({"slots": 50, "words": 8}, (VOCAB, DIM), (8,)),
  "PMI": Size({"segment": 64}),
  "PMIEncoder": Size(
    {"mixer": functools.partial(PMI, segment=64, causal=False), "feed_forward": FeedForward}
  ),
  "PointerMixtureNetwork": Size({"vocab": VOCAB}),
  "RecurrentMemoryTransformer": Size(
    {"body": _layers(_both, FeedForward), "segment": 64, "memory": 8}
  ),
  "Skip": Size({"layers": (*_layer, *_layer), "memory": UltraMem, "at": 1}),
  "SlotRead": Size(extras=_shared(memory=((64, DIM), jnp.float32))),
  "SpatiallyAwareTransformer": Size({"capacity": 256}, extras=_places),
  "Stack": Size({"pattern": _layer, "repeats": 1}),
}


def inputs(size: Size, tokens: int) -> jax.ShapeDtypeStruct:
  """x of one row, abstract."""
  if size.ids is None:
    return jax.ShapeDtypeStruct((1, tokens, size.args[0]), jnp.float32)
  return jax.ShapeDtypeStruct((1, tokens, *size.ids), jnp.int32)
