"""Validation loss of a run, finished or not: `python -m experiments.evaluate --workdir=DIR
[--config.data.path=GLOB]`."""

from absl import flags

from experiments import cli, distributed, meshes, models, runs
from experiments.console import console, table
from memjax import training


def main(config, workdir) -> None:
  with distributed.watch():
    evaluate(config, workdir)


def evaluate(config, workdir) -> None:
  """Prints the loss of every model of the run."""
  with cli.one_line():
    corpus = runs.load_corpus(config.data)
    distributed.same("the text", corpus.fingerprint)
  batches = corpus.evaluation_batches(
    sequence_length=config.sequence_length,
    batch_size=config.batch_size,
    split=flags.FLAGS.split,
    max_tokens=flags.FLAGS.tokens,
    **meshes.share(config),
  )
  eval_step, rows = training.make_eval_step(training.language_model_loss()), []
  for name in runs.contenders(config):
    try:
      step, state = runs.restore(config, workdir, name, corpus.vocab_size)
    except training.CheckpointError as error:
      console.print(str(error), markup=False)
      continue
    found = training.evaluate(eval_step, state, batches, place=meshes.placing(config))
    bits = runs.bits_per_byte(found["nats"], corpus, flags.FLAGS.split)
    size = f"{models.parameters(state.model):,}"
    rows.append([name, str(step), size, f"{found['count']:,.0f}", f"{bits:.4f}"])
  if not rows:
    cli.fail(f"{workdir} holds no checkpoint yet")
  table(
    f"{flags.FLAGS.split} text of {config.data.source}",
    ["model", "step", "parameters", "tokens", "bits/byte"],
    rows,
  )


def _define() -> None:
  flags.DEFINE_enum("split", "validation", ["validation", "train"], "which text")
  flags.DEFINE_integer("tokens", 524_288, "at most this many tokens", lower_bound=1)


if __name__ == "__main__":
  cli.run_on_workdir(main, _define)
