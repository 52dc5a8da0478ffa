"""The main job: a language model with a memory, its dense twin, and the comparison of the two."""

import dataclasses
import pathlib

import numpy as np

from experiments import cli, distributed, meshes, models, plots, runs, usage
from experiments.console import console, table
from experiments.held_out import RESET, HeldOut
from experiments.metrics import WATCHING, Samples, read
from experiments.watch import Watch, continuation
from memjax import training

SEVERAL_PROCESSES = True
MAY_CHANGE = ("evaluation", "checkpoint", "sample", "mesh", "rules", "context", *WATCHING)


@dataclasses.dataclass
class Trained:
  """One trained model and what its training cost."""

  name: str
  model: object
  bits: float  # validation bits per byte
  bits_reset: float | None  # the same with block memories reset every segment; None: there are none
  seconds: float  # of training, evaluations not counted
  curve: list[dict[str, float]]


def run(config, workdir: pathlib.Path) -> bool:
  """Trains the memory model and its dense twin, then reports. Returns False when a signal stopped
  it."""
  with cli.one_line():
    corpus = runs.load_corpus(config.data)
    distributed.same("the text", corpus.fingerprint)
  console.print(
    f"text: {corpus.num_bytes['train'] / 1e6:.1f} MB to train on, "
    f"{corpus.num_bytes['validation'] / 1e6:.2f} MB to validate, "
    f"{corpus.vocab_size} tokens; workdir {workdir}"
  )
  trained = []
  with training.StopOnSignal() as stop:
    for name, memory in runs.contenders(config).items():
      result = train(config, corpus, workdir / name, name, memory, stop)
      if result is None:
        return False
      trained.append(result)
  report(config, corpus, workdir, trained)
  return True


def make_step(config, optimizer, shardings):
  """The training step, jitted."""
  loss_fn = training.language_model_loss(chunk=config.loss_chunk)
  return training.make_train_step(
    loss_fn, optimizer, accumulate=config.accumulate, shardings=shardings
  )


def planned(config, vocab: int, devices):
  """The training step and its abstract state for devices that need not be there."""
  state, optimizer, shardings = runs.set_up(
    config, vocab, config.model.memory, abstract=True, devices=devices
  )
  return make_step(config, optimizer, shardings), state


def train(config, corpus, folder, name: str, memory: str, stop) -> Trained | None:
  """Trains one model, or goes on where its newest checkpoint stands; None when a signal stopped
  it."""
  with cli.one_line():
    state, optimizer, shardings = runs.set_up(config, corpus.vocab_size, memory)
    held_out = HeldOut(config, corpus, state.model)
    text = corpus.train_batches(
      seed=config.seed, **runs.packing(config.data), **runs.rows(config, state.model)
    )
  if text.padding:
    console.print(f"{name}: {text.padding:.2%} of a batch's places hold no text")
  watch = Watch(config, corpus, folder, name, state)

  def evaluate(state):
    watch.sample(state)
    found = held_out(state, config.evaluation.tokens)
    if memory == "none" or not config.evaluation.usage_tokens:
      return found
    batches = map(held_out.place, held_out.batches(max_tokens=config.evaluation.usage_tokens))
    return found | usage.memory_usage(state.model, batches)

  with (
    training.Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep) as checkpoints,
    profiling(config, folder) as around_step,
  ):
    result = training.fit(
      state,
      make_step(config, optimizer, shardings),
      text,
      steps=config.steps,
      evaluate=evaluate,
      evaluate_every=config.evaluation.every,
      checkpoints=checkpoints,
      save_every=config.checkpoint.every,
      max_bad_steps=config.max_bad_steps,
      place=held_out.place,
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
  final = held_out(result.state, config.evaluation.final_tokens)
  bits = runs.bits_per_byte(final["nats"], corpus)
  reset = runs.bits_per_byte(final[RESET], corpus) if RESET in final else None
  curve = read(folder / "metrics.csv")
  return Trained(name, result.state.model, bits, reset, watch.seconds, curve)


def profiling(config, folder: pathlib.Path):
  """The trace that `config.profile.steps` asks for, into `profile/NAME` of the work directory."""
  with cli.one_line():
    return training.profiling(config.profile.steps, folder.parent / "profile" / folder.name)


def report(config, corpus, workdir: pathlib.Path, trained: list[Trained]) -> None:
  """Prints and writes the table of models, the picture of their curves, and a sample of text."""
  first, prompt = trained[0], config.sample.prompt
  sample = continuation(config, corpus, first.model, config.sample.tokens)  # by all processes
  if not distributed.first():
    return
  Samples(workdir / first.name, start=config.steps - 1).write(config.steps, prompt, sample)
  sample = prompt + sample
  rows = []
  for result in trained:
    model = meshes.for_few_rows(config, result.model)
    tokens = config.steps * config.batch_size * config.sequence_length
    rows.append(
      [
        result.name,
        f"{models.parameters(result.model):,}",
        f"{models.flops_per_token(model, config.sequence_length) / 1e6:.2f} M",
        f"{tokens / result.seconds:,.0f}" if result.seconds else "-",
        f"{result.bits:.3f}",
        "-" if result.bits_reset is None else f"{result.bits_reset:.3f}",
      ]
    )
  columns = ["model", "parameters", "FLOPs per token", "tokens/s", "validation bits/byte"]
  if any(result.bits_reset is not None for result in trained):
    columns.append(f"memory reset every {config.model.memory_segment} tokens")
  rows = [row[: len(columns)] for row in rows]
  text = table("Memory and dense twin: equal tokens", columns, rows)
  curves = {result.name: result.curve for result in trained}
  if len(trained) == 2:
    text += "\n" + _comparison(*trained) + "\n"
    console.print(_comparison(*trained))
  plots.learning_curves(workdir / "curves.png", curves, "Validation loss on held-out files")
  text += f"\n## Sample\n\n```\n{sample}\n```\n"
  (workdir / "report.md").write_text(text)
  console.print(f"\nA sample of {trained[0].name}:", style="bold")
  console.print(sample, markup=False)
  console.print(f"\nPicture: {workdir / 'curves.png'}   table: {workdir / 'report.md'}")


def _comparison(memory: Trained, twin: Trained) -> str:
  line = f"{memory.name} is {twin.bits - memory.bits:+.3f} bits/byte better at equal tokens"
  curve, last = _evaluations(memory), _evaluations(twin)
  if len(curve) > 1 and last:
    seconds, bits = zip(*curve, strict=True)
    gain = last[-1][1] - np.interp(twin.seconds, seconds, bits)
    share = min(1.0, twin.seconds / max(memory.seconds, 1e-9))
    line += (
      f", and {gain:+.3f} after the twin's {twin.seconds:.0f} s of training, {share:.0%} of its own"
    )
  return line + "."


def _evaluations(trained: Trained) -> list[tuple[float, float]]:
  """Seconds of training, and bits per byte of the validation text."""
  rows = (row for row in trained.curve if "validation_bits_per_byte" in row)
  return [(row["seconds"], row["validation_bits_per_byte"]) for row in rows]
