"""The one place that knows what `implementation=` means."""

from collections.abc import Callable, Mapping


def choose(op: str, name: str | None, implementations: Mapping[str, Callable], default: str):
  """The implementation of `op` that `implementation=name` asks for; the default one for None.

  Raises:
    ValueError: there is none of that name.
  """
  name = default if name is None else name
  if name not in implementations:
    known = ", ".join(map(repr, implementations))
    raise ValueError(f"implementation={name!r} of {op} is not one of {known} (or None)")
  return implementations[name]
