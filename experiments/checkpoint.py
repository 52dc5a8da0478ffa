"""What the checkpoints of a run hold, and their parameters as a file, without building the model.

    python -m experiments.checkpoint --workdir=DIR [--model=NAME] [--step=N]
      [--export=FILE.safetensors]

Prints every model's checkpoints; of one of them (the newest, or `--model` and `--step`) the step,
the metric, the position in the data, and every array: name, shape, dtype, bytes. `--export` writes
its parameters, to be read by `memjax.training.load_safetensors` or any other reader of the format.
"""

import datetime
import json
import math
import pathlib

from absl import flags

from experiments import cli
from experiments.console import console, number_of_bytes, plain_table
from memjax.training import CheckpointError, Checkpoints, contents
from memjax.training.checkpoint_contents import (
  MEMORY,
  OPTIMIZER,
  PARAMETERS,
  REST,
  Contents,
  parameter_entries,
  saved_steps,
)
from memjax.training.export import save_entries

GROUPS = {
  PARAMETERS: "parameters",
  REST: "the model's other arrays",
  OPTIMIZER: "optimiser",
  MEMORY: "memory state",
  "": "counters and key",
}


def folders(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """`{model: folder of its checkpoints}` of a run."""
  found = (p for p in sorted(workdir.glob("*/checkpoints")) if p.is_dir())
  return {path.parent.name: path for path in found}


def overview(name: str, checkpoints: Checkpoints) -> str:
  """One line: the steps and metrics of a model's checkpoints."""
  parts = []
  for step in saved_steps(checkpoints):
    try:
      metric = contents(checkpoints, step, verify=False).metric
    except CheckpointError:
      parts.append(f"{step} (damaged)")
      continue
    notes = [] if metric is None else [f"{metric:.6g}"]
    notes += ["best"] if step == checkpoints.best_step else []
    parts.append(f"{step} ({', '.join(notes)})" if notes else str(step))
  return f"{name}: " + (f"steps {', '.join(parts)}" if parts else "no checkpoint yet")


def shown(held: Contents) -> None:
  """Prints one checkpoint: arrays by group, totals, the position in the data."""
  rest, totals = dict(held.arrays), []
  rows = []
  for prefix, title in GROUPS.items():
    arrays = {name: rest.pop(name) for name in list(rest) if name.startswith(prefix)}
    if not arrays:
      continue
    for name, array in arrays.items():
      size = math.prod(array.shape) * array.dtype.itemsize
      rows.append([name, str(list(array.shape)), str(array.dtype), f"{size:,}"])
    numbers = sum(math.prod(array.shape) for array in arrays.values())
    size = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    totals.append([title, str(len(arrays)), f"{numbers:,}", f"{size:,}"])
  rows += [[name, "no element", "", "0"] for name in held.empty]
  plain_table(["array", "shape", "dtype", "bytes"], rows)
  console.print()
  plain_table(["", "arrays", "numbers", "bytes"], totals)
  position = held.extra.get("position")
  others = {key: value for key, value in held.extra.items() if key != "position"}
  console.print(f"\nposition in the data: {json.dumps(position)}", markup=False)
  console.print(f"beside it: {json.dumps(others)}", markup=False)


def main(workdir: pathlib.Path) -> None:
  options = flags.FLAGS
  found = folders(workdir)
  if not found:
    cli.fail(f"{workdir} holds no MODEL/checkpoints; is it the folder of a training run?")
  if options.model is not None and options.model not in found:
    cli.fail(f"--model={options.model}: this run has {', '.join(found)}")
  name = options.model
  for each, folder in found.items():
    with Checkpoints(folder, read_only=True) as checkpoints:
      console.print(overview(each, checkpoints), markup=False)
      if name is None and saved_steps(checkpoints):
        name = each
  name = name or next(iter(found))
  try:
    with Checkpoints(found[name], read_only=True) as checkpoints, cli.one_line():
      held = contents(checkpoints, options.step, verify=options.verify)
      when = datetime.datetime.fromtimestamp((found[name] / str(held.step)).stat().st_mtime)
      metric = "none" if held.metric is None else f"{held.metric:.6g}"
      checked = "checksums are right" if options.verify else "checksums not compared"
      console.print(
        f"\n{name}, step {held.step}: metric {metric}, saved {when:%Y-%m-%d %H:%M}, "
        f"{number_of_bytes(held.disk_bytes)} on disk, {checked}\n"
      )
      shown(held)
      if options.export:
        notes = {"model": name, "step": str(held.step), "metric": metric}
        entries = parameter_entries(checkpoints, held)
        written = save_entries(options.export, entries, metadata=notes)
        size = number_of_bytes(sum(file.stat().st_size for file in written))
        files = ", ".join(map(str, written))
        console.print(f"\nwrote {len(entries)} arrays, {size}: {files}", markup=False)
  except CheckpointError as error:
    cli.fail(str(error))


def _define() -> None:
  flags.DEFINE_string("model", None, "which model of the run: its folder's name")
  flags.DEFINE_integer("step", None, "which checkpoint; default: the newest", lower_bound=0)
  flags.DEFINE_string("export", None, "write the parameters to this file, NAME.safetensors")
  flags.DEFINE_boolean("verify", True, "compare the files with their checksums")


if __name__ == "__main__":
  cli.run_on_folder(main, _define)
