"""Recurrent Memory Transformers with different numbers of memory tokens on one text."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import cli, distributed, meshes, models, plots, runs
from experiments.console import console, table
from experiments.jobs.text import profiling
from experiments.metrics import WATCHING, read
from experiments.usage import memory_usage
from experiments.watch import Watch
from memjax import training
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.transformer import LanguageModel, Stack

SEVERAL_PROCESSES = True
MAY_CHANGE = ("evaluation", "checkpoint", "sample", "mesh", "rules", "context", *WATCHING)


@dataclasses.dataclass
class Trained:
  """One trained model: validation bits per byte with its memory, and with it zeroed."""

  name: str
  model: LanguageModel
  bits: float
  bits_zeroed: float
  seconds: float
  curve: list[dict[str, float]]


def build(model, vocab: int, *, memory: int, seed: int) -> LanguageModel:
  """The language model with `memory` memory tokens."""
  attention, feed_forward = models.layers(model, span=None if model.causal_memory else "span")
  body = functools.partial(
    RecurrentMemoryTransformer,
    body=functools.partial(Stack, pattern=(attention, feed_forward), repeats=model.layers),
    segment=model.segment,
    memory=memory,
    causal_memory=model.causal_memory,
    remat=model.remat or None,
  )
  dtype = jnp.dtype(model.dtype)
  return LanguageModel(vocab, model.dim, body=body, dtype=dtype, rngs=nnx.Rngs(seed))


def forgetful(batches, segment: int):
  """The batches with a reset before every segment."""
  for batch in batches:
    reset = batch["reset"].copy()
    reset[:, ::segment] = True
    yield {**batch, "reset": reset}


def run(config, workdir: pathlib.Path) -> bool:
  """Trains one model for each number of memory tokens, then reports. Returns False when a signal
  stopped it."""
  with cli.one_line():
    corpus = runs.load_corpus(config.data)
    distributed.same("the text", corpus.fingerprint)
  trained = []
  with training.StopOnSignal() as stop:
    for memory in config.model.memory:
      result = train(config, corpus, workdir, memory, stop)
      if result is None:
        return False
      trained.append(result)
  if distributed.first():
    report(config, workdir, trained)
  return True


def set_up(config, vocab: int, memory: int, mesh, make=training.make_state):
  """The training state of the model with `memory` memory tokens, its optimiser, and the state's
  shardings; `make` draws it, or does not (`training.abstract_state`)."""
  return make(
    lambda: build(config.model, vocab, memory=memory, seed=config.seed),
    lambda model: runs.make_optimizer(config, model, config.optimizer.learning_rate),
    key=jax.random.key(config.seed),
    mesh=mesh,
    rules=meshes.rules_of(config),
    layout=meshes.layout_of(config),
    memory=lambda model: model.init_state(config.batch_size),
  )


def make_step(config, optimizer, shardings):
  """The training step, jitted."""
  segment = config.model.segment if config.loss_by_segment else None
  loss_fn = training.language_model_loss(carry=True, chunk=config.loss_chunk, segment=segment)
  return training.make_train_step(loss_fn, optimizer, shardings=shardings)


def planned(config, vocab: int, devices):
  """The training step of the last model and its abstract state for devices that need not be
  there."""
  mesh, memory = meshes.mesh_of(config, devices), config.model.memory[-1]
  state, optimizer, shardings = set_up(config, vocab, memory, mesh, training.abstract_state)
  return make_step(config, optimizer, shardings), state


def train(config, corpus, workdir, memory: int, stop) -> Trained | None:
  """Trains one model, or goes on where its newest checkpoint stands; None when a signal stopped
  it."""
  name = f"memory_{memory}"
  with cli.one_line():
    mesh = meshes.mesh_or_none(config)
    state, optimizer, shardings = set_up(config, corpus.vocab_size, memory, mesh)
    place = meshes.placing(config)
  eval_step = training.make_eval_step(training.language_model_loss(carry=True))
  cut = {
    "sequence_length": config.sequence_length,
    "batch_size": config.batch_size,
    "stream": True,
    "align": config.model.segment,
    **meshes.share(config),
  }

  def evaluate(state, tokens=config.evaluation.tokens, change=lambda batches: batches):
    batches = change(corpus.evaluation_batches(**cut, max_tokens=tokens))
    return training.evaluate(eval_step, state, batches, carry=True, place=place)

  def evaluate_and_watch(state):
    watch.sample(state)
    held_out = map(place, corpus.evaluation_batches(**cut, max_tokens=config.evaluation.tokens))
    return {**evaluate(state), **memory_usage(state.model, held_out, carry=True)}

  watch = Watch(config, corpus, workdir / name, name, state)
  with (
    training.Checkpoints(workdir / name / "checkpoints", keep=config.checkpoint.keep) as saved,
    profiling(config, workdir / name) as around_step,
  ):
    result = training.fit(
      state,
      make_step(config, optimizer, shardings),
      corpus.train_batches(**cut, seed=config.seed),
      steps=config.steps,
      evaluate=evaluate_and_watch,
      evaluate_every=config.evaluation.every,
      checkpoints=saved,
      save_every=config.checkpoint.every,
      max_bad_steps=config.max_bad_steps,
      place=place,
      stop=stop,
      watchdog=distributed.watchdog(),
      extra=watch.extra,
      on_start=watch.start,
      on_step=watch.step,
      on_evaluation=watch.evaluation,
      on_checkpoint=watch.checkpoint,
      around_step=around_step,
    )
  watch.close()
  if result.stopped:
    return None
  zero = functools.partial(forgetful, segment=config.model.segment)
  with_memory, zeroed = (
    runs.bits_per_byte(
      evaluate(result.state, config.evaluation.final_tokens, change)["loss"], corpus
    )
    for change in (lambda batches: batches, zero)
  )
  curve = read(workdir / name / "metrics.csv")
  return Trained(name, result.state.model, with_memory, zeroed, watch.seconds, curve)


def report(config, workdir: pathlib.Path, trained: list[Trained]) -> None:
  """Prints and writes the table of models and the picture of their curves."""
  tokens = config.steps * config.batch_size * config.sequence_length
  rows = [
    [
      result.name,
      f"{models.parameters(result.model):,}",
      f"{tokens / result.seconds:,.0f}" if result.seconds else "-",
      f"{result.bits:.3f}",
      f"{result.bits_zeroed:.3f}",
    ]
    for result in trained
  ]
  columns = ["model", "parameters", "tokens/s", "validation bits/byte", "memory zeroed"]
  text = table(f"Segments of {config.model.segment} tokens: equal tokens", columns, rows)
  (workdir / "report.md").write_text(text)
  curves = {result.name: result.curve for result in trained}
  plots.learning_curves(workdir / "curves.png", curves, "Validation loss on held-out files")
  console.print(f"Picture: {workdir / 'curves.png'}   table: {workdir / 'report.md'}")
