"""Runs a recipe: `python -m experiments.train --config=experiments/configs/text.py --workdir=DIR`.

Any field of the recipe can be set: `--config.steps=100`. The same command continues a run that was
stopped or killed.
"""

import errno
import importlib
import sys

from experiments import cli
from experiments.workdir import WorkdirError, prepare
from memjax.training import CheckpointError, ConfigMismatch, TrainingDiverged

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


def main(config, workdir) -> None:
  job = importlib.import_module(config.job)
  try:
    prepare(workdir, config, may_change=getattr(job, "MAY_CHANGE", ()))
    finished = job.run(config, workdir)
  except (ConfigMismatch, CheckpointError, TrainingDiverged, WorkdirError) as error:
    cli.fail(str(error))
  except OSError as error:
    if error.errno not in DISK:
      raise
    where = error.filename or workdir
    cli.fail(f"{where}: {error.strerror}. Once that is mended, the same command goes on")
  if finished is False:
    print("Stopped; the state is saved. The same command goes on from here.")
  sys.exit(0)


if __name__ == "__main__":
  cli.run(main)
