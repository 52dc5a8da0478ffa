"""Runs a recipe: `python -m experiments.train --config=experiments/configs/text.py --workdir=DIR`.

Any field of the recipe can be set: `--config.steps=100`. The same command continues a run that was
stopped or killed. On several hosts the same command is started once on each; see docs/launch.md.
"""

import errno
import importlib
import sys

import jax

from experiments import cli, distributed, metrics
from experiments.workdir import WorkdirError, plain, prepare
from memjax.training import CheckpointError, ConfigMismatch, TrainingDiverged

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


def main(config, workdir) -> None:
  with distributed.watch():
    run(config, workdir)
  sys.exit(0)


def run(config, workdir) -> None:
  """Runs the recipe's job; a mistake of the user's ends the program with one line."""
  with cli.one_line():
    metrics.import_wandb(config)
  job = importlib.import_module(config.job)
  if jax.process_count() > 1 and not getattr(job, "SEVERAL_PROCESSES", False):
    cli.fail(f"config.job={config.job} runs in one process, and this is one of several")
  may_change = getattr(job, "MAY_CHANGE", ())
  try:
    with cli.one_line():
      distributed.same("the configuration (the flags, the recipe)", plain(config))
    distributed.once(
      lambda: prepare(workdir, config, may_change=may_change), (ConfigMismatch, WorkdirError)
    )
    finished = job.run(config, workdir)
  except (ConfigMismatch, CheckpointError, TrainingDiverged, WorkdirError) as error:
    cli.fail(str(error))
  except OSError as error:
    if error.errno not in DISK:
      raise
    where = error.filename or workdir
    cli.fail(f"{where}: {error.strerror}. Once that is mended, the same command goes on")
  if finished is False and distributed.first():
    print("Stopped; the state is saved. The same command goes on from here.")


if __name__ == "__main__":
  cli.run(main)
