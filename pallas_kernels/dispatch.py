"""The one place that knows what `implementation=` means."""

import importlib
from collections.abc import Callable, Mapping, Sequence

import jax

Implementation = str | Sequence[str] | None


def lazy(module: str, name: str) -> Callable:
  """A function that imports `module` and calls its `name`: kernels cost nothing until traced."""

  def call(*args, **options):
    return getattr(importlib.import_module(module), name)(*args, **options)

  return call


def hashable(implementation: Implementation):
  """The same, hashable, as a static argument of a custom gradient must be."""
  if implementation is None or isinstance(implementation, str):
    return implementation
  return tuple(implementation)


def choose(
  op: str, name: Implementation, implementations: Mapping[str, Callable], default: Callable
):
  """The function that `implementation=name` asks for: `default` for None, or the first of a list
  that does not raise `NotImplementedError` when it is traced.

  Raises:
    ValueError: there is none of that name.
    NotImplementedError, when called: the one that was named cannot run here.
    ExceptionGroup, when called: none of a list can.
  """
  names = [name] if isinstance(name, str) else list(name or ())
  for one in names:
    if one not in implementations:
      known = ", ".join(map(repr, implementations))
      raise ValueError(f"implementation={one!r} of {op} is not one of {known} (or None)")
  if name is None:
    return default
  if len(names) == 1:
    return implementations[names[0]]

  def first(*args):
    refusals = []
    for one in names:
      try:
        return implementations[one](*args)
      except NotImplementedError as error:
        error.add_note(f"implementation {one!r} of {op}")
        refusals.append(error)
    raise ExceptionGroup(f"no implementation of {op} in {names} can run here", refusals)

  return first


def by_platform(default: Callable, **kernels: Callable) -> Callable:
  """A function that runs a platform's own kernel where it can, and `default` elsewhere.

  The platform is that of the device which the program is lowered for, not that of the host.

  Args:
    default: an XLA form.
    **kernels: by platform ("tpu", "cuda"); one that raises `NotImplementedError` for its arguments
      leaves them to `default`.
  """

  def run(*args):
    able = {}
    for platform, kernel in kernels.items():
      try:
        jax.eval_shape(kernel, *args)
      except NotImplementedError:
        continue
      able[platform] = kernel
    return jax.lax.platform_dependent(*args, default=default, **able) if able else default(*args)

  return run
