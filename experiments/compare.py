"""Which memory is best at what, at about equal state bytes, parameters and FLOPs?

    python -m experiments.compare --workdir=DIR [--budget=small] [--seeds=3]
      [--tasks=mqar,copy,passkey,pi,tmaze] [--memories=attention,window,ntm,...]

Every memory stands in the same shell and trains on the same examples, at four learning rates and
so many seeds at once (one compiled program); the rate that is best on validation at the TRAINING
settings is tested on settings that were not looked at before, as it is and with its memory zeroed
before every segment. One CSV file a cell (task x memory) comes to DIR/cells, all of them and a page
with the plots to DIR/results.csv and DIR/report.html. What is finished is never run again, an
interrupted training goes on; start the same command several times to use several processes.

`--memories=all` takes every memory that is known, and prints first how long that will take
(`--estimate` prints it and stops). `module:Name` is a memory (a factory `(dim, rngs=)`) or a task
of yours; `ntm@8192` is a memory at another number of bytes.
"""

import pathlib

from absl import flags

from experiments import cli
from experiments import workdir as folders
from experiments.console import console


def main(workdir: pathlib.Path) -> None:
  import jax

  from experiments.comparison import cells, estimate, report

  options = flags.FLAGS
  compiled = workdir.resolve() / "compiled"  # of all processes: what is compiled once is read
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  with cli.one_line():
    wanted = _cells(options)
    if not (workdir / "environment.json").exists():
      folders.write_json(workdir / "environment.json", folders.environment())
  if options.estimate or options.memories == "all":
    estimate.show([cell for cell in wanted if not cells.finished(cell, workdir)])
  if options.estimate:
    return
  failed = [] if options.report_only else run_cells(wanted, workdir)
  print(report.write(wanted, workdir))
  if failed:
    cli.fail("these cells failed: " + ", ".join(failed), 1)


def _cells(options):
  from experiments.comparison import memories, plan

  budget, names = options.budget, str(options.memories)
  names = {"all": ",".join(memories.MEMORIES), "": ",".join(memories.SMALL)}.get(names, names)
  if budget not in plan.BUDGETS:
    raise ValueError(f"--budget={budget}: not one of {', '.join(plan.BUDGETS)}")
  rates = tuple(map(float, options.learning_rates)) or None
  return plan.cells(
    options.tasks, names.split(","), budget, options.seeds, steps=options.steps,
    batch=options.batch, conv=options.conv, rates=rates, enough=options.enough,
  )  # fmt: skip


def run_cells(wanted, workdir: pathlib.Path) -> list[str]:
  """Runs what no other process runs; the names of the cells that failed."""
  from experiments.comparison import cells

  failed, elsewhere = [], []
  tell = lambda line: console.print(line, markup=False, highlight=False)  # noqa: E731
  for cell in wanted:
    try:
      if not cells.run(cell, workdir, tell):
        elsewhere.append(cell.name)
    except Exception as error:  # one that cannot run keeps none of the others from it
      tell(f"{cell.name} failed: {type(error).__name__}: {error}")
      failed.append(cell.name)
  if elsewhere:
    tell(f"other processes are at {', '.join(elsewhere)}; the report is of what is finished")
  return failed


def _define() -> None:
  known = "mqar,copy,passkey,pi,tmaze"
  flags.DEFINE_list("tasks", known, f"of {known}, or module:Name")
  flags.DEFINE_string("memories", "", "names, all, or module:Name; default: ten of them")
  flags.DEFINE_string("budget", "small", "tiny (does it run?), small (an hour) or medium")
  flags.DEFINE_integer("seeds", 3, "of parameters and data", lower_bound=1)
  flags.DEFINE_integer("steps", None, "of training, in place of the budget's", lower_bound=1)
  flags.DEFINE_integer("batch", None, "examples a step, in place of the budget's", lower_bound=1)
  flags.DEFINE_list("learning_rates", [], "in place of the budget's")
  flags.DEFINE_integer("conv", None, "tokens of the short convolution; 0: none", lower_bound=0)
  flags.DEFINE_float("enough", None, "where training ends, on validation; above 1: never before")
  flags.DEFINE_boolean("estimate", False, "print how long it will take, and stop")
  flags.DEFINE_boolean("report_only", False, "make the report of what is finished")


if __name__ == "__main__":
  cli.run_on_folder(main, _define, make=True)
