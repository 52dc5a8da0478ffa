"""Text from a run, finished or not: `python -m experiments.generate --workdir=DIR --prompt="def
"`."""

import jax
import numpy as np
from absl import flags

from experiments import cli, distributed, meshes, runs
from memjax import training
from memjax.training import processes
from memjax.transformer import generate


def main(config, workdir) -> None:
  options = flags.FLAGS
  with cli.one_line():
    corpus = runs.load_corpus(config.data)
  name = options.model or next(iter(runs.contenders(config)))
  if name not in runs.contenders(config):
    cli.fail(f"--model={name}: this run has {', '.join(runs.contenders(config))}")
  try:
    _, state = runs.restore(config, workdir, name, corpus.vocab_size)
  except training.CheckpointError as error:
    cli.fail(str(error))
  prompt = np.asarray(corpus.tokenizer.encode(options.prompt), np.int32)
  if not prompt.size:
    cli.fail("--prompt is empty; give at least one character")
  made = generate(
    meshes.for_few_rows(config, state.model),
    np.tile(prompt, (options.samples, 1)),
    max_new_tokens=options.tokens,
    temperature=options.temperature,
    top_k=options.top_k,
    top_p=options.top_p,
    key=jax.random.key(options.seed),
  )
  tokens = processes.whole(made.tokens)
  for row in tokens if distributed.first() else ():
    print(options.prompt + corpus.tokenizer.decode(row))
    if options.samples > 1:
      print("-" * 80)


def _define() -> None:
  flags.DEFINE_string("prompt", "def ", "the text to continue")
  flags.DEFINE_integer("tokens", 300, "how many tokens to make", lower_bound=1)
  flags.DEFINE_integer("samples", 1, "how many continuations", lower_bound=1)
  flags.DEFINE_float("temperature", 0.7, "0: the likeliest token at each step", lower_bound=0)
  flags.DEFINE_integer("top_k", None, "sample from this many likeliest tokens", lower_bound=1)
  flags.DEFINE_float(
    "top_p", None, "sample from the likeliest tokens that hold this much probability"
  )
  flags.DEFINE_integer("seed", 0, "of the sampling")
  flags.DEFINE_string("model", None, "which model of the run: its folder's name")


if __name__ == "__main__":
  cli.run_on_workdir(main, _define)
