"""A run's folder: its configuration and the versions it ran with."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile

PACKAGES = (
  "memjax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
  "tensorflow-datasets",
)


class WorkdirError(RuntimeError):
  """The folder cannot be used; the message says why."""


def prepare(workdir: pathlib.Path, config, may_change: tuple[str, ...] = ()) -> None:
  """Makes the folder, refuses one of another configuration, writes `config.json` and
  `environment.json`.

  Raises:
    ConfigMismatch: the folder was written by another configuration; the message names the fields.
    WorkdirError: the folder cannot be written.
  """
  from memjax.training import check_config

  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise WorkdirError(
      f"--workdir={workdir} cannot be written: {error.strerror or error}"
    ) from error
  check_config(workdir, plain(config), may_change=may_change)
  write_json(workdir / "environment.json", environment())


def plain(config) -> dict:
  """A config as JSON would read it back: dicts, lists, numbers, strings."""
  return json.loads(config.to_json_best_effort())


def environment() -> dict:
  """Versions, machine and command of this run."""
  import jax

  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": sys.argv,
    "python": sys.version.split()[0],
    "platform": platform.platform(),
    "processors": os.cpu_count(),
    "devices": [str(device) for device in jax.devices()],
    "device_kinds": sorted({device.device_kind for device in jax.devices()}),
    "versions": versions,
  }


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON atomically: the file is either the old one or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
  os.replace(partial, path)
