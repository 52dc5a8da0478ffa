"""Validation loss of a run, finished or not: `python -m experiments.evaluate --workdir=DIR
[--config.data.path=GLOB]`."""

from absl import flags

from experiments import cli, distributed, models, runs
from experiments.console import console, table
from experiments.held_out import RESET, HeldOut
from memjax import training


def main(config, workdir) -> None:
  with distributed.watch():
    evaluate(config, workdir)


def evaluate(config, workdir) -> None:
  """Prints the loss of every model of the run."""
  with cli.one_line():
    corpus = runs.load_corpus(config.data)
    distributed.same("the text", corpus.fingerprint)
  rows, split = [], flags.FLAGS.split
  for name in runs.contenders(config):
    try:
      step, state = runs.restore(config, workdir, name, corpus.vocab_size)
    except training.CheckpointError as error:
      console.print(str(error), markup=False)
      continue
    found = HeldOut(config, corpus, state.model, split)(state, flags.FLAGS.tokens)
    nats = [found["nats"], *([found[RESET]] if RESET in found else [])]
    bits = [f"{runs.bits_per_byte(each, corpus, split):.4f}" for each in nats]
    size = f"{models.parameters(state.model):,}"
    rows.append([name, str(step), size, f"{found['count']:,.0f}", *bits])
  if not rows:
    cli.fail(f"{workdir} holds no checkpoint yet")
  columns = ["model", "step", "parameters", "tokens", "bits/byte", "memory reset every segment"]
  most = max(map(len, rows))
  table(
    f"{split} text of {config.data.source}",
    columns[:most],
    [row + ["-"] * (most - len(row)) for row in rows],
  )


def _define() -> None:
  flags.DEFINE_enum("split", "validation", ["validation", "train"], "which text")
  flags.DEFINE_integer("tokens", 524_288, "at most this many tokens", lower_bound=1)


if __name__ == "__main__":
  cli.run_on_workdir(main, _define)
