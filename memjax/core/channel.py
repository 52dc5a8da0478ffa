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

import jax
import jax.numpy as jnp

_frames: list = []


class Frame:
  """What was emitted (`emitted: dict`) and which taps were asked for (`wanted: dict` of shapes)
  during one trace."""

  def __init__(self, taps=None):
    self.taps, self.wanted, self.emitted = taps, {}, {}
    self.prefix = ""


@contextlib.contextmanager
def collect(taps: dict | None = None):
  """Collects what is emitted inside the block; `taps` supplies the arrays of `Frame.wanted` (zeros
  when None)."""
  _frames.append(Frame(taps))
  try:
    yield _frames[-1]
  finally:
    _frames.pop()


@contextlib.contextmanager
def muted():
  """Nothing emitted inside the block leaves it: for the bodies of `cond` and `while_loop`, which
  cannot hand values on."""
  _frames.append(None)
  try:
    yield
  finally:
    _frames.pop()


@contextlib.contextmanager
def scope(name: str):
  """Prefixes the names emitted inside the block with `name/`, so that layers stay apart."""
  top = _frames[-1] if _frames else None
  if top is None:
    yield
    return
  before, top.prefix = top.prefix, f"{top.prefix}{name}/"
  try:
    yield
  finally:
    top.prefix = before


def collecting() -> bool:
  """Whether anybody collects: lets a memory skip work done only to be emitted."""
  return bool(_frames) and _frames[-1] is not None


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
    top = _frames[-1]
    top.emitted[_fresh(top.emitted, top.prefix + name)] = value


def tap(name: str, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
  """An array of zeros to add to a lookup's output; with `collect(taps)` the array given there."""
  if not collecting():
    return jnp.zeros(shape, dtype)
  top = _frames[-1]
  key = _fresh(top.wanted, top.prefix + name)
  top.wanted[key] = jax.ShapeDtypeStruct(shape, dtype)
  return jnp.zeros(shape, dtype) if top.taps is None else top.taps[key]


def wanted(fn, *args) -> dict:
  """Shapes of the taps that `fn(*args)` asks for."""
  with collect() as frame:
    jax.eval_shape(
      lambda *a: fn(*a), *args
    )  # a new function each time: a cached trace would ask for nothing
  return frame.wanted


def scan(body, carry, xs, length: int | None = None, unroll: int = 1):
  """`jax.lax.scan` that lets emitted values out (stacked on axis 0) and taps in (one a step)."""
  if not collecting():
    return jax.lax.scan(body, carry, xs, length, unroll=unroll)
  steps = jax.tree.leaves(xs)[0].shape[0] if length is None else length
  asked = wanted(body, carry, jax.tree.map(lambda a: a[0], xs))
  taps = {key: tap(key, (steps, *s.shape), s.dtype) for key, s in asked.items()}

  def inner(carry, inputs):
    x, step_taps = inputs
    with collect(step_taps) as frame:
      carry, y = body(carry, x)
    return carry, (y, frame.emitted)

  carry, (ys, emitted) = jax.lax.scan(inner, carry, (xs, taps), steps, unroll=unroll)
  for key, value in emitted.items():
    emit(key, value)
  return carry, ys


def checkpoint(fn, *args, policy=None, prevent_cse: bool = True):
  """`jax.checkpoint(fn)(*args)` that lets emitted values out and taps in."""
  if not collecting():
    return jax.checkpoint(fn, policy=policy, prevent_cse=prevent_cse)(*args)
  taps = {key: tap(key, s.shape, s.dtype) for key, s in wanted(fn, *args).items()}

  def inner(taps, *args):
    with collect(taps) as frame:
      out = fn(*args)
    return out, frame.emitted

  out, emitted = jax.checkpoint(inner, policy=policy, prevent_cse=prevent_cse)(taps, *args)
  for key, value in emitted.items():
    emit(key, value)
  return out
