"""A work directory belongs to one configuration."""

import json
import pathlib
from collections.abc import Mapping, Sequence


class ConfigMismatch(ValueError):
  """The work directory was written by another configuration; the message names the fields."""


def check_config(
  workdir, config: Mapping, *, may_change: Sequence[str] = (), name: str = "config.json"
) -> None:
  """Writes the configuration into a new work directory; refuses one that holds another.

  Args:
    workdir: made when it is missing.
    config: nested dict of JSON values with string keys; tuples count as lists.
    may_change: fields that may differ from run to run, with dots (`"checkpoint.every"`); a prefix
      (`"checkpoint"`) covers all below it. What the numbers do not depend on belongs here: how
      often to evaluate, to log, to save. The file then holds the new values.
    name: of the file.

  Raises:
    ConfigMismatch: other fields differ, or the file is not a configuration.
    TypeError: a value is not JSON.
  """
  text = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
  path = pathlib.Path(workdir) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists():
    old, new = _read(path), _shown(json.loads(text))
    names = {field for field, _ in old.items() ^ new.items() if not _covered(field, may_change)}
    there, now = (lambda f: old.get(f, "missing")), (lambda f: new.get(f, "missing"))
    if names:
      fields = "\n".join(f"  {f}: {there(f)} there, {now(f)} now" for f in sorted(names))
      raise ConfigMismatch(
        f"{path.parent} was written by another configuration:\n{fields}\n"
        "Use these values, or another work directory."
      )
  part = path.with_suffix(".part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)


def _read(path: pathlib.Path) -> dict[str, str]:
  try:
    return _shown(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, AttributeError) as error:
    raise ConfigMismatch(
      f"{path} is not a configuration that was written here ({error}); use another work directory"
    ) from error


def _shown(config: dict, prefix: str = "") -> dict[str, str]:
  """The fields by dotted name, as they are shown and compared."""
  fields = {}
  for key, value in config.items():
    if isinstance(value, dict) and value:
      fields.update(_shown(value, f"{prefix}{key}."))
    else:
      fields[f"{prefix}{key}"] = repr(value)
  return fields


def _covered(field: str, names: Sequence[str]) -> bool:
  return any(field == name or field.startswith(f"{name}.") for name in names)
