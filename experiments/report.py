"""A run as one HTML page: `python -m experiments.report --workdir=DIR [--out=FILE]`.

Loss curves of all models over what they have seen and over seconds, speed and utilisation, gradient
norms, memory usage by layer, samples, the result, checkpoints, configuration, environment. Of a run
in progress, and of one of which pieces are missing, it shows what is there. The file needs nothing
beside it and no network.
"""

import os
import pathlib

from absl import flags

from experiments import cli
from experiments.reporting.collect import collect
from experiments.reporting.page import page


def main(workdir: pathlib.Path) -> None:
  run = collect(workdir)
  if not run.models and not run.config:
    cli.fail(f"{workdir} holds neither config.json nor metrics; is it the folder of a run?")
  out = pathlib.Path(flags.FLAGS.out or workdir / "report.html")
  with cli.one_line():
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(page(run), encoding="utf-8")
    os.replace(partial, out)
  print(out)


def _define() -> None:
  flags.DEFINE_string("out", None, "the file to write; default: report.html in the folder")


if __name__ == "__main__":
  cli.run_on_folder(main, _define)
