"""bAbI with a network of its own for every task, as most published results are: the job of
`experiments.jobs.babi` task after task, an epoch in one compiled call."""

import functools
import pathlib

import jax
import numpy as np
import optax

from experiments import cli, models
from experiments.console import console
from experiments.jobs import babi
from experiments.metrics import WATCHING, MetricsWriter
from memjax import training
from memjax.tasks.babi import TASKS, Questions

MAY_CHANGE = ("data.tasks", "evaluation", *WATCHING)


class Epochs:
  """Epochs of random questions with replacement, `[steps, size, ...]` each, over all sentences."""

  def __init__(self, questions: Questions, size: int, seed: int):
    self.questions, self.size, self.seed, self.next = questions, size, seed, 0

  def __next__(self):
    rng = np.random.default_rng((self.seed, self.next))
    self.next += 1
    known = self.questions
    rows = rng.integers(len(known), size=(len(known) // self.size, self.size))
    asked = {name: getattr(known, name)[rows] for name in ("story", "count", "question", "answer")}
    return {"sentences": known.sentences, "asked": asked}


def whole(step):
  """The steps of an epoch as one compiled call, with the metrics of the last of them."""

  @functools.partial(jax.jit, donate_argnums=0)
  def epoch(state, batches):
    def one(state, asked):
      return step(state, asked | {"sentences": batches["sentences"]})

    state, metrics = jax.lax.scan(one, state, batches["asked"])
    return state, jax.tree.map(lambda m: m[-1], metrics)

  return epoch


def train(config, folder: pathlib.Path, nets, questions, validation, stop):
  """Both phases of one task: the networks, or None when a signal stopped it."""
  steps, name = len(questions) // config.batch_size, folder.name
  for phase, part in (("linear", config.linear), ("softmax", config.softmax)):
    if not part.epochs:
      continue
    linear = phase == "linear"
    rate = optax.exponential_decay(
      part.learning_rate, part.halve_every * steps, 0.5, staircase=True
    )
    optimizer = babi.clipped(rate, config.clip, config.optimizer)

    def evaluate(state, linear=linear):
      found = babi.errors(babi.started(state.model, linear), validation)[:, 0]
      return {"loss": float(found.min()), "mean_error": float(found.mean())}

    writer = MetricsWriter(folder / phase, start=0, config=config)

    def show(epoch, metrics, best, writer=writer, phase=phase, part=part):
      least, mean, seconds = metrics["loss"], metrics["mean_error"], metrics["seconds"]
      row = {"epoch": epoch, "validation_error": mean, "least_validation_error": least}
      writer.write(epoch, row | {"seconds": seconds})
      console.print(
        f"{name}  {phase}  epoch {epoch}/{part.epochs}  validation error {mean:.1%} "
        f"(least {least:.1%})  {seconds:.0f} s"
      )

    result = training.fit(
      training.init_train_state(nets, optimizer, key=jax.random.key(config.seed + 1)),
      whole(training.make_train_step(babi.make_loss(linear, same_noise=True), optimizer)),
      Epochs(questions, config.batch_size, config.seed),
      steps=part.epochs, evaluate=evaluate, evaluate_every=config.evaluation.every,
      until=lambda metrics: metrics["loss"] <= config.enough, on_evaluation=show, stop=stop,
    )  # fmt: skip
    writer.close()
    if result.stopped:
      return None
    nets = result.state.model
  return nets


def run(config, workdir: pathlib.Path) -> bool:
  """Trains the restarts of every task and reports. Returns False when a signal stopped it: the task
  in progress then begins anew at the next start, those that had ended do not."""
  tasks, found = tuple(config.data.tasks or TASKS), []
  with training.StopOnSignal() as stop:
    for task in tasks:
      folder = workdir / f"qa{task}"
      if not (folder / "errors.csv").exists():
        with cli.one_line():
          data = babi.read_files(config, (task,))
          nets = babi.build(config, data)
        console.print(
          f"qa{task}: {len(data.train):,} questions to train on, stories of {data.slots} "
          f"sentences, {data.vocab} ids, {config.restarts} networks of "
          f"{models.parameters(nets) // config.restarts:,} parameters"
        )
        nets = train(config, folder, nets, data.train, data.validation, stop)
        if nets is None:
          return False
        both = [babi.errors(nets, part)[:, 0] for part in (data.train, data.test)]
        np.savetxt(folder / "errors.csv", both, fmt="%.4f", delimiter=",")
      found.append(np.loadtxt(folder / "errors.csv", delimiter=",", ndmin=2))
  fitted, test = (np.stack(each, axis=1) for each in zip(*found, strict=True))
  babi.report(workdir, fitted.argmin(axis=0), test, list(tasks))
  return True
