"""Command lines: a recipe whose fields are flags; a mistake is one line that names the nearest
fields."""

import contextlib
import difflib
import json
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from experiments import distributed, meshes
from memjax.training import watchdog


def fail(message: str, status: int = 2) -> NoReturn:
  """Ends the program with one line on standard error."""
  print(f"error: {message}", file=sys.stderr)
  sys.exit(status)


@contextlib.contextmanager
def one_line():
  """Ends the program with one line when what the user gave does not fit."""
  try:
    yield
  except (ValueError, TypeError, KeyError, OSError) as error:
    fail(str(error.args[0]) if isinstance(error, KeyError) else str(error))


def field_names(config, prefix: str = "") -> list[str]:
  """Dotted names of all the fields of a config."""
  names = []
  for key, value in config.items():
    names.append(prefix + key)
    if isinstance(value, config_dict.ConfigDict):
      names += field_names(value, f"{prefix}{key}.")
  return names


def run(main: Callable) -> None:
  """Runs `main(config, workdir)` with `--config=FILE --config.field=value ... --workdir=DIR`."""
  config = config_flags.DEFINE_config_file("config", None, "the recipe: a file with get_config()")
  workdir = flags.DEFINE_string("workdir", None, "folder for metrics, pictures and checkpoints")
  distributed.define_flags()

  def start(argv):
    _no_left_overs(argv)
    if config.value is None or workdir.value is None:
      fail("give a recipe and a folder: --config=experiments/configs/text.py --workdir=DIR")
    _join()
    main(config.value, pathlib.Path(workdir.value))

  argv = sys.argv
  path = _value_of(argv, "config")
  if path is not None:
    _check_fields(argv, _read_recipe(path))
  _run(start)


def run_recipe(main: Callable, define: Callable = lambda: None) -> None:
  """Runs `main(config, path of the recipe)` with `--config=FILE --config.field=value ...`.

  Args:
    main: called with the config and the path.
    define: defines further flags.
  """
  config = config_flags.DEFINE_config_file("config", None, "the recipe: a file with get_config()")
  path = _value_of(sys.argv, "config")
  if path is None:
    fail("give a recipe: --config=experiments/configs/text.py")
  _check_fields(sys.argv, _read_recipe(path))
  define()

  def start(argv):
    _no_left_overs(argv)
    main(config.value, path)

  _run(start)


def run_on_workdir(main: Callable, define: Callable = lambda: None) -> None:
  """Runs `main(config, workdir)` with the config that a run left in `--workdir`; its fields can be
  set by flags.

  Args:
    main: called with the config and the folder.
    define: defines further flags.
  """
  workdir = _value_of(sys.argv, "workdir")
  if workdir is None:
    fail("give the folder of a run: --workdir=DIR")
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    fail(f"{path} does not exist; is --workdir the folder of a training run?")
  config = config_dict.ConfigDict(json.loads(path.read_text()))
  config.mesh = config_dict.ConfigDict(meshes.SIZES)  # of this machine, not of the run's
  _check_fields(sys.argv, config)
  flag = config_flags.DEFINE_config_dict("config", config)
  flags.DEFINE_string("workdir", None, "folder of a training run")
  distributed.define_flags()
  define()

  def start(argv):
    _no_left_overs(argv)
    _join()
    main(flag.value, pathlib.Path(workdir))

  _run(start)


def run_on_folder(main: Callable, define: Callable = lambda: None, *, make: bool = False) -> None:
  """Runs `main(workdir)` on the folder of a run, whether or not it has a configuration that can be
  read; `define` defines further flags. With `make` the folder need not be there yet."""
  folder = flags.DEFINE_string("workdir", None, "folder of a training run")
  define()

  def start(argv):
    _no_left_overs(argv)
    if folder.value is None:
      fail("give the folder of a run: --workdir=DIR")
    workdir = pathlib.Path(folder.value)
    if make:
      with one_line():
        workdir.mkdir(parents=True, exist_ok=True)
    elif not workdir.is_dir():
      fail(f"--workdir={workdir}: there is no such folder")
    main(workdir)

  _run(start)


def _join() -> None:
  """Joins the other processes of the run, if there are any."""
  try:
    with one_line():
      distributed.start()
  except distributed.StartError as error:
    fail(str(error), watchdog.STATUS)


def _is_news(record) -> bool:
  """Not the traceback of a save that failed, which Orbax prints and `CheckpointError` says."""
  return not (record.exc_info and "orbax" in record.pathname)


def _hush() -> None:
  """Silences arrays that were still being written when a save had failed: each says at its end that
  nobody waits for it any more, with a traceback."""
  uncaught, unraisable = sys.excepthook, sys.unraisablehook

  def late(error) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

  sys.excepthook = lambda *args: None if late(args[1]) else uncaught(*args)
  sys.unraisablehook = lambda args: None if late(args.exc_value) else unraisable(args)


def _run(start: Callable) -> None:
  _hush()
  logging.set_verbosity(logging.WARNING)
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_is_news)

  def parse(argv):
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
      fail(str(error).strip("'\""))

  app.run(start, flags_parser=parse)


def _no_left_overs(argv) -> None:
  if len(argv) > 1:
    fail(f"what is {argv[1]!r}? Flags look like --config.steps=100")


def _value_of(argv, name: str) -> str | None:
  for position, word in enumerate(argv):
    if word.startswith(f"--{name}="):
      return word.partition("=")[2]
    if word == f"--{name}" and position + 1 < len(argv):
      return argv[position + 1]
  return None


def _read_recipe(path: str) -> config_dict.ConfigDict:
  if not pathlib.Path(path).is_file():
    there = sorted(
      str(p) for p in pathlib.Path(__file__).parent.joinpath("configs").glob("[a-z]*.py")
    )
    near = difflib.get_close_matches(path, there, 1, 0)
    fail(f"--config={path}: there is no such file" + (f"; did you mean {near[0]}?" if near else ""))
  made = runpy.run_path(path)
  if "get_config" not in made:
    fail(f"--config={path}: the file has no get_config()")
  return made["get_config"]()


def _check_fields(argv, config: config_dict.ConfigDict) -> None:
  known = field_names(config)
  for word in argv[1:]:
    if not word.startswith("--config."):
      continue
    name = word.removeprefix("--config.").partition("=")[0]
    if name not in known:
      near = difflib.get_close_matches(name, known, 3, 0.4)
      hint = "; did you mean " + " or ".join(f"--config.{n}" for n in near) + "?" if near else ""
      fail(f"--config.{name}: the recipe has no such field{hint}")
