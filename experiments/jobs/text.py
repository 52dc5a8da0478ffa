"""The main job: a language model with a memory, its dense twin, and the comparison of the two."""

import dataclasses
import pathlib
import time

import jax
import numpy as np

from experiments import cli, distributed, meshes, models, plots, runs, usage
from experiments.console import TrainingBar, console, table
from experiments.metrics import WATCHING, MetricsWriter, Samples, read
from experiments.speed import Speed
from memjax import training
from memjax.training import processes
from memjax.transformer import generate

SEVERAL_PROCESSES = True
MAY_CHANGE = ("evaluation", "checkpoint", "sample", "mesh", "rules", "context", *WATCHING)


@dataclasses.dataclass
class Trained:
  """One trained model and what its training cost."""

  name: str
  model: object
  bits: float  # validation bits per byte
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
    place, share = meshes.placing(config), meshes.share(config)
    # A memory of segments takes resets at their borders only.
    align = {"align": config.model.memory_segment} if memory == "lm2" else {}
    text = corpus.train_batches(
      sequence_length=config.sequence_length,
      batch_size=config.batch_size,
      seed=config.seed,
      **runs.packing(config.data),
      **align,
      **share,
    )
  if text.padding:
    console.print(f"{name}: {text.padding:.2%} of a batch's places hold no text")
  watch = Watch(config, corpus, folder, name, state)
  eval_step = training.make_eval_step(training.language_model_loss(chunk=config.loss_chunk))

  def batches(tokens):
    return corpus.evaluation_batches(
      sequence_length=config.sequence_length,
      batch_size=config.batch_size,
      max_tokens=tokens,
      **align,
      **share,
    )

  def evaluate(state):
    found = training.evaluate(eval_step, state, batches(config.evaluation.tokens), place=place)
    held_out = map(place, batches(config.evaluation.tokens))
    watch.sample(state)
    return {**found, **usage.memory_usage(state.model, held_out)}

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
  final = training.evaluate(
    eval_step, result.state, batches(config.evaluation.final_tokens), place=place
  )
  bits = runs.bits_per_byte(final["nats"], corpus)
  return Trained(name, result.state.model, bits, watch.seconds, read(folder / "metrics.csv"))


def profiling(config, folder: pathlib.Path):
  """The trace that `config.profile.steps` asks for, into `profile/NAME` of the work directory."""
  with cli.one_line():
    return training.profiling(config.profile.steps, folder.parent / "profile" / folder.name)


class Watch:
  """Shows and records one training: progress bar, metrics, samples, and seconds spent (evaluations
  not counted)."""

  def __init__(self, config, corpus, folder, name: str, state):
    self.config, self.corpus, self.folder, self.name = config, corpus, folder, name
    self.tokens = config.batch_size * config.sequence_length
    model = jax.eval_shape(lambda: meshes.for_few_rows(config, state.model))
    self.speed = Speed.of(model, state.params, self.tokens, config.sequence_length)
    self.seconds, self.last, self.checkpoint_seconds = 0.0, None, 0.0

  def extra(self) -> dict:
    """What the checkpoint keeps: seconds of training so far."""
    return {"seconds": self.seconds}

  def start(self, step: int, extra: dict) -> None:
    self.seconds = extra.get("seconds", 0.0)
    first = distributed.first()
    self.writer = (
      MetricsWriter(self.folder, start=step, config=self.config) if first else distributed.Silent()
    )
    self.samples = Samples(self.folder, start=step) if first else distributed.Silent()
    self.bar = TrainingBar(self.name, self.config.steps, start=step)
    if step:
      self.bar.line(f"{self.name}: goes on at step {step}")
    self.last = None

  def step(self, step: int, metrics: dict) -> None:
    now = time.monotonic()
    spent = now - self.last if self.last else 0.0  # the first step compiles: not counted
    self.last = now
    self.seconds += spent
    bits = runs.bits_per_byte(metrics["nats"], self.corpus, "train")
    speed = self.speed.metrics(spent)
    self.bar.step(step, bits, self.speed.text(speed))
    self.writer.write(
      step,
      {
        "tokens": step * self.tokens,
        "seconds": self.seconds,
        "train_bits_per_byte": bits,
        **speed,
        "gradient_norm": metrics["grad_norm"],
        "skipped_steps": metrics["skipped"],
      },
    )
    if not metrics["finite"]:
      self.bar.line(
        f"{self.name}: step {step} was not finite and changed nothing "
        f"({metrics['skipped']:.0f} so far)"
      )

  def sample(self, state) -> None:
    """Writes down how the model continues the recipe's prompt."""
    part = self.config.sample
    if part.evaluation_tokens:
      text = continuation(self.config, self.corpus, state.model, part.evaluation_tokens)
      self.samples.write(int(state.step), part.prompt, text)

  def evaluation(self, step: int, metrics: dict, is_best: bool) -> None:
    metrics = dict(metrics)
    bits = runs.bits_per_byte(metrics["nats"], self.corpus)
    metrics = {k: v for k, v in metrics.items() if k not in ("loss", "count", "nats", "seconds")}
    used = usage.summary(metrics)
    used = f", {used}" if used else ""
    best = "  (best)" if is_best else ""
    self.bar.line(f"{self.name}: step {step}  validation {bits:.3f} bits/byte{used}{best}")
    row = {"tokens": step * self.tokens, "seconds": self.seconds, "validation_bits_per_byte": bits}
    self.writer.write(step, {**row, **metrics})
    self.last = time.monotonic()

  def checkpoint(self, step: int, seconds: float) -> None:
    self.checkpoint_seconds += seconds

  def close(self) -> None:
    self.bar.close()
    self.writer.close()


def report(config, corpus, workdir: pathlib.Path, trained: list[Trained]) -> None:
  """Prints and writes the table of models, the picture of their curves, and a sample of text."""
  model, tokens = trained[0].model, config.sample.tokens
  sample = config.sample.prompt + continuation(config, corpus, model, tokens)  # by all processes
  if not distributed.first():
    return
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
      ]
    )
  columns = ["model", "parameters", "FLOPs per token", "tokens/s", "validation bits/byte"]
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


def continuation(config, corpus, model, tokens: int) -> str:
  """How a model goes on from the recipe's prompt."""
  prompt = corpus.tokenizer.encode(config.sample.prompt)[None]
  made = generate(
    meshes.for_few_rows(config, model),
    prompt,
    max_new_tokens=tokens,
    temperature=config.sample.temperature,
    key=jax.random.key(config.seed),
  )
  return corpus.tokenizer.decode(processes.whole(made.tokens)[0])
