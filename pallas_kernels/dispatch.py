"""The one place that knows what `implementation=` means."""

from collections.abc import Callable, Mapping


def choose(op: str, implementation: str | None, implementations: Mapping[str, Callable], default: str) -> Callable:
  """The implementation of `op` that was asked for; `default` for None.

  Raises:
    ValueError: there is none of that name.
  """
  name = default if implementation is None else implementation
  if name not in implementations:
    known = ", ".join(map(repr, implementations))
    raise ValueError(f"implementation={implementation!r} of {op} is not one of {known} (or None)")
  return implementations[name]
