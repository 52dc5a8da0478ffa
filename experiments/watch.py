"""How one training is shown and recorded: progress bar, metrics, samples of text, seconds."""

import time

import jax

from experiments import distributed, meshes, runs, usage
from experiments.console import TrainingBar
from experiments.held_out import RESET
from experiments.metrics import MetricsWriter, Samples
from experiments.speed import Speed
from memjax.training import processes
from memjax.transformer import generate


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
    row = {"tokens": step * self.tokens, "seconds": self.seconds, "validation_bits_per_byte": bits}
    told = f"validation {bits:.3f} bits/byte"
    if RESET in metrics:
      reset = runs.bits_per_byte(metrics.pop(RESET), self.corpus)
      row["validation_bits_per_byte_memory_reset"] = reset
      told += f", {reset:.3f} with its memory reset every segment"
    metrics = {k: v for k, v in metrics.items() if k not in ("loss", "count", "nats", "seconds")}
    used = usage.summary(metrics)
    used = f", {used}" if used else ""
    best = "  (best)" if is_best else ""
    self.bar.line(f"{self.name}: step {step}  {told}{used}{best}")
    self.writer.write(step, {**row, **metrics})
    self.last = time.monotonic()

  def checkpoint(self, step: int, seconds: float) -> None:
    self.checkpoint_seconds += seconds

  def close(self) -> None:
    self.bar.close()
    self.writer.close()


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
