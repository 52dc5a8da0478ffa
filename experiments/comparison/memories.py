"""The memories that `experiments.compare` knows by name, at sizes that carry about the same bytes.

A user's own is named as `module:Name`: a factory `(dim, rngs=)` of a memory, or a `Candidate`.
`NAME@BYTES` is NAME at another size of state.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable

from experiments.comparison.shell import Candidate, Size
from memjax.parametric import ProductKeyMemory
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import (
  ELMUR,
  LM2,
  ConformerNTM,
  DifferentiableNeuralComputer,
  LRUAMemory,
  Memformer,
  NeuralTuringMachine,
  RelationalMemory,
  SlotRead,
)
from memjax.transformer import Attention

WIDTH = 16  # of a slot of those that are addressed by content


def _layer(make: Callable, **options) -> Candidate:
  return Candidate((functools.partial(make, **options),))


def _window(size: Size, numbers: int | None = None):
  """Attention to the last tokens whose keys and values are so many numbers a layer."""
  numbers = size.numbers if numbers is None else numbers
  reach = max(1, numbers // (2 * size.dim))
  return functools.partial(Attention, heads=size.heads, window=reach)


def _ntm(size: Size) -> Candidate:
  """State: slots x (width + 2 weights), what was read, and the LSTM's 2 x hidden."""
  rest = 2 * size.dim + WIDTH
  slots = max(4, (size.numbers - rest) // (WIDTH + 2))
  return _layer(NeuralTuringMachine, slots=slots, width=WIDTH, hidden=size.dim)


def _dnc(size: Size) -> Candidate:
  """State: slots x (width + slots of links + usage, precedence and weights), and the LSTM's."""
  rest, slots = 2 * size.dim + 2 * WIDTH, 4
  while (slots + 1) * (WIDTH + slots + 1 + 5) + rest <= size.numbers:
    slots += 1
  options = {"read_heads": 2, "hidden": size.dim}
  return _layer(DifferentiableNeuralComputer, slots=slots, width=WIDTH, **options)


def _lrua(size: Size) -> Candidate:
  rest = 2 * size.dim + 2 * WIDTH
  slots = max(4, (size.numbers - rest) // (WIDTH + 1 + 2 * 2))
  return _layer(LRUAMemory, slots=slots, width=WIDTH, heads=2, hidden=size.dim)


def _conformer_ntm(size: Size) -> Candidate:
  slots = max(4, (size.numbers - WIDTH) // (WIDTH + 2))
  return _layer(ConformerNTM, slots=slots, width=WIDTH)


def _rmc(size: Size) -> Candidate:
  slots = max(2, size.numbers // size.dim)
  head = size.dim // size.heads
  return _layer(RelationalMemory, slots=slots, heads=size.heads, head_size=head)


def _lm2(size: Size) -> Candidate:
  """Half of the bytes for slots, half for the window of the attention that it goes around."""
  half = size.numbers // 2
  options = {"heads": size.heads, "segment": size.segment, "attention": _window(size, half)}
  return _layer(LM2, slots=min(size.dim, max(1, half // size.dim)), **options)


def _elmur(size: Size) -> Candidate:
  slots = max(1, size.numbers // (size.dim + 1))
  options = {"heads": size.heads, "segment": size.segment, "slots": slots, "distance": 64}
  return Candidate((functools.partial(ELMUR, **options),), hidden="hidden")


def _rmt(size: Size) -> Candidate:
  """As many memory tokens as the bytes allow, but no more than a segment has: each is read and
  written as a token is."""
  memory = max(1, min(size.segment, size.state // (4 * size.dim)))
  around = functools.partial(RecurrentMemoryTransformer, segment=size.segment, memory=memory)
  return Candidate((functools.partial(Attention, heads=size.heads, span="span"),), around=around)


def _memformer(size: Size) -> Candidate:
  slots = max(1, size.state // (4 * size.dim))

  def around(dim, *, body, rngs):
    return Memformer(
      dim, encoder=body, segment=size.segment, slots=slots, heads=size.heads, remat=None, rngs=rngs
    )

  layers = (
    functools.partial(Attention, heads=size.heads),
    functools.partial(SlotRead, heads=size.heads),
  )
  return Candidate(layers, around=around)


def _product_keys(size: Size) -> Candidate:
  """In place of the feed-forward; what is before the tokens comes through a window."""
  keys = functools.partial(ProductKeyMemory, keys=32, heads=2, top_k=8, query_dim=size.dim)
  return Candidate((_window(size),), feed=keys)


MEMORIES: dict[str, Callable[[Size], Candidate]] = {
  "attention": lambda size: _layer(Attention, heads=size.heads),
  "window": lambda size: Candidate((_window(size),)),
  "none": lambda size: Candidate(()),
  "ntm": _ntm,
  "dnc": _dnc,
  "lrua": _lrua,
  "conformer_ntm": _conformer_ntm,
  "rmc": _rmc,
  "lm2": _lm2,
  "elmur": _elmur,
  "rmt": _rmt,
  "memformer": _memformer,
  "product_keys": _product_keys,
}
SMALL = (
  "attention",
  "window",
  "none",
  "ntm",
  "lm2",
  "elmur",
  "rmt",
  "memformer",
  "product_keys",
)


def load(name: str):
  """The object that `module:Name` names.

  Raises:
    ValueError: there is none.
  """
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"{name}: {error}") from error


def candidate(name: str, size: Size) -> Candidate:
  """The memory of this name.

  Raises:
    ValueError: the name is unknown, or its bytes are no number.
  """
  name = name.partition("@")[0]
  if ":" in name:
    made = load(name)
    return made if isinstance(made, Candidate) else Candidate((made,))
  if name not in MEMORIES:
    known = ", ".join(MEMORIES)
    raise ValueError(f"--memories={name}: not one of {known}; your own is module:Name")
  return MEMORIES[name](size)


def sized(name: str, size: Size) -> Size:
  """`size`, with the bytes of `NAME@BYTES`.

  Raises:
    ValueError: these are no number.
  """
  _, at, count = name.partition("@")
  if not at:
    return size
  if not count.isdigit() or int(count) < 1:
    raise ValueError(f"--memories={name}: after @ stand the bytes of the state, as in ntm@8192")
  return dataclasses.replace(size, state=int(count))
