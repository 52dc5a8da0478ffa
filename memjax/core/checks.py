"""Checks at trace time: each error names the argument, what it got, and what would fit."""

import jax
import jax.numpy as jnp

from memjax.core.state import axes, batch_size


def positive(**sizes: int) -> None:
  """Raises ValueError unless every named size is an int >= 1."""
  for name, value in sizes.items():
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise ValueError(f"{name}={value!r} must be an integer >= 1")


def divides(name: str, divisor: int, of: str, value: int) -> None:
  """Raises ValueError unless `divisor` (called `name`) divides `value` (called `of`)."""
  positive(**{name: divisor, of: value})
  if value % divisor:
    fits = [d for d in range(1, value + 1) if value % d == 0]
    near = sorted(fits, key=lambda d: abs(d - divisor))[:2]
    raise ValueError(
      f"{name}={divisor} does not divide {of}={value}; "
      f"{name} could be {' or '.join(map(str, sorted(near)))}"
    )


def fraction(**rates: float) -> None:
  """Raises ValueError unless every named rate lies in [0, 1)."""
  for name, value in rates.items():
    if not 0 <= value < 1:
      raise ValueError(f"{name}={value!r} must lie in [0, 1)")


def one_of(name: str, value, choices) -> None:
  """Raises ValueError unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def flag(name: str, value, shape: tuple[int, ...]) -> None:
  """Raises unless `value` is None or a bool array of `shape` (batch, time)."""
  if value is None:
    return
  if tuple(value.shape) != tuple(shape):
    raise ValueError(
      f"{name} has shape {list(value.shape)}; x has batch and time {list(shape)}, "
      f"so {name} must be [B, T] = {list(shape)}"
    )
  if value.dtype != jnp.bool_:
    raise TypeError(
      f"{name} has dtype {value.dtype}; it must be bool (for example {name} = {name} != 0)"
    )


def state_batch(state, batch: int) -> None:
  """Raises ValueError unless the state was made for `batch` rows (and is a state at all)."""
  if state is None:
    raise TypeError(
      "state is None; it is always given: start with state = memory.init_state(batch)"
    )
  made = batch_size(state)
  if made is not None and made != batch:
    raise ValueError(
      f"state was made for batch {made}, x has batch {batch}; use memory.init_state({batch})"
    )


def call(memory, x, state, reset, valid, *, dim: int) -> None:
  """The checks that every memory over activations makes: `x [B, T, dim]` float, state of batch B,
  flags `[B, T]` bool."""
  name = type(memory).__name__
  if not isinstance(x, jax.Array) and not hasattr(x, "dtype"):
    raise TypeError(f"x of {name} is {type(x).__name__}; it must be an array [B, T, {dim}]")
  if x.ndim != 3 or x.shape[-1] != dim:
    raise ValueError(f"x of {name} has shape {list(x.shape)}; it must be [B, T, dim={dim}]")
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(
      f"x of {name} has dtype {x.dtype}; activations must be floating (embed ids first)"
    )
  if x.shape[1] < 1:
    raise ValueError(f"x of {name} has no tokens (shape {list(x.shape)}); T must be >= 1")
  flag("reset", reset, x.shape[:2])
  flag("valid", valid, x.shape[:2])
  state_batch(state, x.shape[0])


def context_entry(memory, context, group: str, name: str):
  """`context.<group>[name]`, or a KeyError that says which memory reads it and what was there."""
  entries = getattr(context, group) if context is not None else {}
  if name not in entries:
    raise KeyError(
      f"{type(memory).__name__} reads context.{group}[{name!r}], which was not given "
      f"(there: {sorted(entries) or 'nothing'}); "
      f"call with context=Context({group}={{{name!r}: ...}})"
    )
  return entries[name]


def same_state(state, expected, name: str) -> None:
  """Raises ValueError unless `state` has the structure, shapes and dtypes of `expected` (concrete
  or abstract)."""
  if jax.tree.structure(state) != jax.tree.structure(expected):
    raise ValueError(
      f"the state given to {name} has another structure than its init_state makes; "
      "was it made by another memory?"
    )
  for got, want, names in zip(
    jax.tree.leaves(state), jax.tree.leaves(expected), jax.tree.leaves(axes(expected)), strict=True
  ):
    if got.shape != want.shape or got.dtype != want.dtype:
      raise ValueError(
        f"a leaf {list(names)} of the state given to {name} is {got.dtype}{list(got.shape)}; "
        f"expected {want.dtype}{list(want.shape)}"
      )
