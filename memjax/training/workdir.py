"""A work directory belongs to one configuration."""

import json
import pathlib
from collections.abc import Mapping, Sequence


class ConfigMismatch(ValueError):
  """The work directory was written by another configuration; the message names the fields."""


def check_config(
  workdir, config: Mapping, *, may_change: Sequence[str] = (), name: str = "config.json"
) -> None:
  """Writes the configuration into a new work directory, and refuses one that was written by another configuration.

  Args:
    workdir: made when it is missing.
    config: nested dict of JSON values with string keys; tuples count as lists.
    may_change: fields that may differ from run to run, with dots (`"checkpoint.every"`); a prefix (`"checkpoint"`) covers all
      below it. What the numbers do not depend on belongs here: how often to evaluate, to log, to save. The file then
      holds the new values.
    name: of the file.

  Raises:
    ConfigMismatch: other fields differ, or the directory holds other files but no configuration.
    TypeError: a value is not JSON.
  """
  new = _fields(json.loads(json.dumps(dict(config))))
  path = pathlib.Path(workdir) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists():
    old = _read(path)
    differ = [
      f
      for f in {**old, **new}
      if _missing_or(old, f) != _missing_or(new, f) and not _covered(f, may_change)
    ]
    if differ:
      lines = "\n".join(
        f"  {f}: {_missing_or(old, f)} there, {_missing_or(new, f)} now" for f in sorted(differ)
      )
      raise ConfigMismatch(
        f"{path.parent} was written by another configuration:\n{lines}\nUse these values, or another work directory."
      )
  part = path.with_suffix(".part")
  part.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
  part.replace(path)


def _read(path: pathlib.Path) -> dict:
  try:
    return _fields(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, AttributeError) as error:
    raise ConfigMismatch(
      f"{path} is not a configuration that was written here ({error}); use another work directory"
    ) from error


def _fields(config: dict, prefix: str = "") -> dict:
  fields = {}
  for key, value in config.items():
    if isinstance(value, dict) and value:
      fields.update(_fields(value, f"{prefix}{key}."))
    else:
      fields[f"{prefix}{key}"] = value
  return fields


def _missing_or(fields: dict, name: str) -> str:
  return repr(fields[name]) if name in fields else "missing"


def _covered(field: str, names: Sequence[str]) -> bool:
  return any(field == name or field.startswith(f"{name}.") for name in names)
