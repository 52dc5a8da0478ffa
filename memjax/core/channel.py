"""The one side channel: losses, counts and touched rows out of a memory, taps into it, through
scan and checkpoint.

`emit(name, value)` hands a value to whoever collects; `tap(name, shape)` is a zero to add to a
lookup's output, whose
gradient is the gradient of the rows that were read. A frame lives while one body is traced. `scan`
and `checkpoint` open a
frame inside their body, so that no tracer crosses a border, and hand everything on outside,
stacked. Who does not collect
pays nothing: what is emitted and not used is removed by the compiler.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

_frames: list = []
_indices: list = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Traced:
  """A whole array on its way out, and the loops that stacked it.

  Attributes:
    values: `[*loops, B, T, ...]`; without T if not `tokens`.
    tokens: the array itself has tokens on its axis after the batch's.
    loops: what each leading axis is, the outermost first: "time", "layers", or None.
  """

  values: jax.Array
  tokens: bool = dataclasses.field(metadata={"static": True})
  loops: tuple[str | None, ...] = dataclasses.field(default=(), metadata={"static": True})

  def stacked(self, axis: str | None) -> "Traced":
    """Of the values, which a loop has stacked on axis 0."""
    return dataclasses.replace(self, loops=(axis, *self.loops))


class Frame:
  """What was emitted (`emitted: dict`) and which taps were asked for (`wanted: dict` of shapes)
  during one trace."""

  def __init__(
    self, taps=None, outer: "Frame | None" = None, measures: bool = False, traces: bool = False
  ):
    self.taps, self.wanted, self.emitted, self.outer = taps, {}, {}, outer
    self.measures, self.traces = measures or traces, traces
    self.prefix = ""

  def emit(self, name: str, value) -> None:
    self.emitted[_fresh(self.emitted, self.prefix + name)] = value
    if self.outer is not None:
      self.outer.emit(self.prefix + name, value)

  def tap(self, name: str, shape: tuple[int, ...], dtype) -> jax.Array:
    key = _fresh(self.wanted, self.prefix + name)
    self.wanted[key] = jax.ShapeDtypeStruct(shape, dtype)
    if self.outer is not None:
      return self.outer.tap(self.prefix + name, shape, dtype)
    return jnp.zeros(shape, dtype) if self.taps is None else self.taps[key]


@contextlib.contextmanager
def _open(frame: Frame | None) -> Iterator:
  _frames.append(frame)
  try:
    yield frame
  finally:
    _frames.pop()


def collect(
  taps: dict | None = None, *, measure: bool = False, trace: bool = False
) -> contextlib.AbstractContextManager[Frame]:
  """Collects what is emitted inside the block.

  Args:
    taps: the arrays of `Frame.wanted`. None: zeros; or, inside the block of another collector,
      that one's: it also hears of all that is emitted, so that a training step can collect around
      a loss function that does.
    measure: also ask for what memories tell of their use (`core.usage`), here and in all collectors
      inside the block.
    trace: ask for that, and for the whole arrays behind it (`Traced`): see `memjax.inspect`.
  """
  outer = _frames[-1] if taps is None and _frames else None
  return _open(Frame(taps, outer, measure or measuring(), trace or tracing()))


def muted() -> contextlib.AbstractContextManager:
  """Nothing emitted inside the block leaves it: for the bodies of `cond` and `while_loop`, which
  cannot hand values on. Taps inside it are lost: `refuse_if_muted`."""
  return _open(None)


@contextlib.contextmanager
def scope(name: str, index: jax.Array | None = None):
  """Prefixes the names emitted inside the block with `name/`, so that layers stay apart.

  Args:
    index: int32, which of the layers under this name it is, where one scan runs several.
  """
  top = _frames[-1] if collecting() else Frame()
  before, top.prefix = top.prefix, f"{top.prefix}{name}/"
  _indices.extend(() if index is None else (index,))
  try:
    yield
  finally:
    top.prefix = before
    if index is not None:
      _indices.pop()


def indices() -> tuple[jax.Array, ...]:
  """The index of every open scope that has one, outermost first: which layer of its stacks this
  is. Emitted with a value, they are stacked as it is."""
  return tuple(_indices)


def collecting() -> bool:
  """Whether anybody collects: lets a memory skip work done only to be emitted."""
  return bool(_frames) and _frames[-1] is not None


def measuring() -> bool:
  """Whether somebody asked for measurements (`core.usage`), which else are not computed."""
  return bool(_frames) and _frames[-1] is not None and _frames[-1].measures


def tracing() -> bool:
  """Whether somebody asked for whole arrays, such as the addresses of every token."""
  return measuring() and _frames[-1].traces


def _fresh(table: dict, name: str) -> str:  # a, a.1, a.2: several calls of one name stay apart
  count, key = 0, name
  while key in table:
    count += 1
    key = f"{name}.{count}"
  return key


def emit(name: str, value) -> None:
  """Hands `value` (any pytree of arrays) to the innermost collector under `name`; does nothing
  when nobody collects."""
  if collecting():
    _frames[-1].emit(name, value)


def tap(name: str, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """An array of zeros to add to a lookup's output; with `collect(taps)` the array given there."""
  if collecting():
    return _frames[-1].tap(name, shape, dtype)
  return jnp.zeros(shape, dtype)


def refuse_if_muted(name: str) -> None:
  """Raises ValueError where a tap would be lost to a collector that supplies taps."""
  if not collecting() and _frames and _frames[0] is not None and _frames[0].taps is not None:
    raise ValueError(
      f"{name} is read inside a cond or a while_loop, out of which its gradient cannot be handed "
      "as touched rows; train this table by dense gradients"
    )


def wanted(fn, *args) -> dict:
  """Shapes of the taps that `fn(*args)` asks for."""
  with _open(Frame()) as frame:
    jax.eval_shape(
      lambda *a: fn(*a), *args
    )  # a new function each time: a cached trace would ask for nothing
  return frame.wanted


def scan(
  body, carry, xs, length: int | None = None, unroll: int = 1, loop: Callable = jax.lax.scan,
  axis: str | None = None,
) -> tuple[Any, Any]:  # fmt: skip
  """`jax.lax.scan` that lets emitted values out (stacked on axis 0) and taps in (one a step).

  Args:
    loop: what runs the steps, called as `loop(body, carry, xs, length, unroll=)`.
    axis: what the steps are: "time" (tokens, or segments of them), "layers", or None.
  """
  steps = jax.tree.leaves(xs)[0].shape[0] if length is None else length
  if not collecting():
    return loop(body, carry, xs, steps, unroll=unroll)
  asked = wanted(body, carry, jax.tree.map(lambda a: a[0], xs))
  taps = {key: tap(key, (steps, *s.shape), s.dtype) for key, s in sorted(asked.items())}

  def inner(carry, inputs):
    x, step_taps = inputs
    with collect(step_taps) as frame:
      carry, y = body(carry, x)
    return carry, (y, frame.emitted)

  carry, (ys, emitted) = loop(inner, carry, (xs, taps), steps, unroll=unroll)
  for key, value in sorted(emitted.items()):  # in the order of their taps
    emit(key, value.stacked(axis) if isinstance(value, Traced) else value)
  return carry, ys


def checkpoint(fn, *args, policy=None, prevent_cse: bool = True):
  """`jax.checkpoint(fn)(*args)` that lets emitted values out and taps in."""
  if not collecting():
    return jax.checkpoint(fn, policy=policy, prevent_cse=prevent_cse)(*args)
  taps = {key: tap(key, s.shape, s.dtype) for key, s in sorted(wanted(fn, *args).items())}

  def inner(taps, *args):
    with collect(taps) as frame:
      out = fn(*args)
    return out, frame.emitted

  out, emitted = jax.checkpoint(inner, policy=policy, prevent_cse=prevent_cse)(taps, *args)
  for key, value in sorted(emitted.items()):
    emit(key, value)
  return out
