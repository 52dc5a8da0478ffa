"""bAbI: end-to-end memory networks on the real files, trained jointly on all tasks, in several
restarts of which the one with the least training error counts (arXiv 1503.08895)."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import cli, models
from experiments.console import console, table
from experiments.jobs.text import profiling
from experiments.metrics import WATCHING, MetricsWriter
from experiments.usage import PREFIX, memory_usage
from memjax import training
from memjax.core import Context, replace
from memjax.slots import EndToEndMemoryNetwork
from memjax.tasks import babi

MAY_CHANGE = ("evaluation", "checkpoint", *WATCHING)


class Batches:
  """Random questions with replacement; only the sentences that a batch needs come with it."""

  def __init__(self, questions: babi.Questions, size: int, seed: int):
    self.questions, self.size, self.seed, self.next = questions, size, seed, 0
    self.room = 64  # rows of `sentences`: the fewest that held every batch so far

  def __next__(self):
    rows = np.random.default_rng((self.seed, self.next))
    self.next += 1
    batch = gather(self.questions, rows.integers(len(self.questions), size=self.size))
    self.room = max(self.room, -(-len(batch["sentences"]) // 64) * 64)
    short = self.room - len(batch["sentences"])
    return batch | {"sentences": np.pad(batch["sentences"], ((0, short), (0, 0)))}

  def get_state(self):
    return {"next": self.next, "room": self.room}

  def set_state(self, state):
    self.next, self.room = state["next"], state["room"]


def gather(questions: babi.Questions, rows) -> dict[str, np.ndarray]:
  """Some questions as arrays, over the sentences that they need."""
  needed, story = np.unique(questions.story[rows], return_inverse=True)
  return {
    "sentences": questions.sentences[needed],
    "story": story.reshape(len(rows), -1).astype(np.int32),
    "count": questions.count[rows],
    "question": questions.question[rows],
    "answer": questions.answer[rows],
  }


def logits(net: EndToEndMemoryNetwork, batch, key) -> jax.Array:
  """`[B, answers]`, each sentence of the batch being embedded once."""
  stories = jnp.take(net.encode(batch["sentences"]), batch["story"], axis=0)
  return net.answer(batch["question"], stories, batch["count"], context=Context(key=key))


def make_loss(linear: bool):
  """The loss of a stack of restarts `[R, ...]` on one batch, each with a noise of its own."""

  def one(net, batch, key):
    answers = logits(net, batch, key)
    nats = optax.softmax_cross_entropy_with_integer_labels(answers, batch["answer"])
    return jnp.sum(nats), jnp.mean(jnp.argmax(answers, axis=-1) != batch["answer"])

  def loss(nets, memory, batch, key):
    nets = replace(nets, linear=linear)
    keys = jax.random.split(key, jax.tree.leaves(nets)[0].shape[0])
    nats, wrong = jax.vmap(one, in_axes=(0, None, 0))(nets, batch, keys)
    # Restarts share no parameter: the sum trains each on its own loss, summed over the batch.
    metrics = {"error": jnp.mean(wrong), "least_error": jnp.min(wrong)}
    return training.LossOutput(jnp.sum(nats), jnp.float32(1), memory, metrics)

  return loss


def clipped_sgd(rate: optax.Schedule, clip: float) -> optax.GradientTransformation:
  """SGD with the norm of each matrix of each restart clipped."""

  def cut(g):
    norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=(1, 2), keepdims=True))
    return g * jnp.minimum(1, clip / jnp.maximum(norm, 1e-12))

  clipping = optax.stateless(lambda updates, params: jax.tree.map(cut, updates))
  return optax.chain(clipping, optax.sgd(rate))


def errors(nets, questions: babi.Questions, size: int = 250) -> np.ndarray:
  """Shares of wrong answers `[R, tasks]`, by the tasks of `questions` in order."""

  @jax.jit
  def wrong(nets, encoded, batch):
    def one(net, encoded):
      stories = jnp.take(encoded, batch["story"], axis=0)
      answers = net.answer(batch["question"], stories, batch["count"])
      return jnp.argmax(answers, axis=-1) != batch["answer"]

    return jax.vmap(one)(nets, encoded)

  encoded = jax.jit(jax.vmap(lambda net: net.encode(jnp.asarray(questions.sentences))))(nets)
  found = []
  names = ("story", "count", "question", "answer")
  for start in range(0, len(questions), size):
    part = {name: getattr(questions, name)[start : start + size] for name in names}
    found.append(np.asarray(wrong(nets, encoded, part)))
  found = np.concatenate(found, axis=1)
  tasks = dict.fromkeys(questions.task.tolist())
  return np.stack([found[:, questions.task == task].mean(axis=1) for task in tasks], axis=1)


def read_files(config):
  """Training, validation and test questions, the number of ids, and the longest sentence."""
  if not config.data.path:
    raise ValueError(
      "config.data.path is empty; give the folder of the bAbI files, such as "
      "--config.data.path=tasks_1-20_v1-2/en"
    )
  tasks = config.data.tasks or babi.TASKS
  files = {
    split: {task: babi.load(config.data.path, task, split) for task in tasks}
    for split in ("train", "test")
  }
  every = (e for split in files.values() for examples in split.values() for e in examples)
  known, length = babi.vocabulary(every)
  arrays = functools.partial(babi.to_arrays, known=known, slots=config.model.slots, length=length)
  train, test = arrays(files["train"]), arrays(files["test"])
  order = np.random.default_rng(config.seed).permutation(len(train))
  held = int(config.data.validation * len(train))
  return train.take(np.sort(order[held:])), train.take(order[:held]), test, len(known), length


def build(config, vocab: int, words: int) -> EndToEndMemoryNetwork:
  """All restarts as one network with stacked parameters `[R, ...]`."""
  made = config.model

  def make(key):
    return EndToEndMemoryNetwork(
      vocab, made.dim, slots=made.slots, words=words, hops=made.hops, tying=made.tying,
      position=made.position or None, temporal=made.temporal,
      answers=vocab + made.slots * made.temporal, noise=made.noise,
      mask_empty=made.mask_empty, rngs=nnx.Rngs(params=key),
    )  # fmt: skip

  return jax.vmap(make)(jax.random.split(jax.random.key(config.seed), config.restarts))


def ask(net: EndToEndMemoryNetwork, memory, batch):
  """Answers a batch with one network, for `memory_usage`."""
  logits(net, batch, None)
  return memory


class Watch:
  """Shows and records one phase of the training."""

  def __init__(self, config, folder: pathlib.Path, name: str, epochs: int, steps_per_epoch: int):
    self.config, self.folder, self.name = config, folder, name
    self.epochs, self.steps = epochs, steps_per_epoch

  def start(self, step: int, extra: dict) -> None:
    self.writer = MetricsWriter(self.folder, start=step, config=self.config)
    if step:
      console.print(f"{self.name}: goes on at epoch {step / self.steps:.0f}")

  def evaluation(self, step: int, metrics: dict, best: bool) -> None:
    epoch, mean, least = step / self.steps, metrics["mean_error"], metrics["loss"]
    row = {"epoch": epoch, "validation_error": mean, "least_validation_error": least}
    row |= {name: value for name, value in metrics.items() if name.startswith(PREFIX)}
    self.writer.write(step, row | {"seconds": metrics["seconds"]})
    console.print(
      f"{self.name}  epoch {epoch:.0f}/{self.epochs}  validation error {mean:.1%} "
      f"(least {least:.1%})  {metrics['seconds']:.0f} s"
    )


def train(config, workdir: pathlib.Path, nets, questions, validation, stop):
  """Both phases, or what is left of them: the networks, or None when a signal stopped it."""
  steps = len(questions) // config.batch_size  # of an epoch
  watched = gather(validation, np.arange(min(len(validation), 250)))
  for name, part in (("linear", config.linear), ("softmax", config.softmax)):
    if not part.epochs:
      continue
    linear, watch = name == "linear", Watch(config, workdir / name, name, part.epochs, steps)
    rate = optax.exponential_decay(
      part.learning_rate, part.halve_every * steps, 0.5, staircase=True
    )
    optimizer = clipped_sgd(rate, config.clip)

    def evaluate(state, linear=linear):
      found = errors(replace(state.model, linear=linear), validation).mean(axis=1)
      best = jax.tree.map(lambda a: a[found.argmin()], replace(state.model, linear=linear))
      used = memory_usage(best, [watched], ask)
      return {"loss": float(found.min()), "mean_error": float(found.mean())} | used

    with (
      training.Checkpoints(workdir / name / "checkpoints", keep=1) as checkpoints,
      profiling(config, workdir / name) as around_step,
    ):
      result = training.fit(
        training.init_train_state(nets, optimizer, key=jax.random.key(config.seed + 1)),
        training.make_train_step(make_loss(linear), optimizer),
        Batches(questions, config.batch_size, config.seed),
        steps=part.epochs * steps, evaluate=evaluate,
        evaluate_every=config.evaluation.every * steps, checkpoints=checkpoints,
        save_every=config.checkpoint.every * steps, stop=stop,
        on_start=watch.start, on_evaluation=watch.evaluation, around_step=around_step,
      )  # fmt: skip
    watch.writer.close()
    if result.stopped:
      return None
    nets = result.state.model
  return nets


def run(config, workdir: pathlib.Path) -> bool:
  """Trains all restarts and reports. Returns False when a signal stopped it."""
  with cli.one_line():
    questions, validation, test, vocab, words = read_files(config)
    nets = build(config, vocab, words)
  parameters = models.parameters(nets) // config.restarts
  console.print(
    f"{len(questions):,} questions to train on, {len(validation):,} to validate, {len(test):,} to "
    f"test; {vocab} ids, {config.restarts} networks of {parameters:,} parameters"
  )
  with training.StopOnSignal() as stop:
    nets = train(config, workdir, nets, questions, validation, stop)
  if nets is None:
    return False
  report(workdir, errors(nets, questions), errors(nets, test), list(dict.fromkeys(test.task)))
  return True


def report(workdir: pathlib.Path, fitted: np.ndarray, found: np.ndarray, tasks: list[int]) -> None:
  """Test errors `found [R, tasks]` by task: of the restart with the least training error, and of
  all."""
  best = int(fitted.mean(axis=1).argmin())
  rows = [
    [f"qa{task}", f"{e[best]:.1%}", f"{e.mean():.1%}", f"{e.min():.1%}", f"{e.max():.1%}"]
    for task, e in zip(tasks, found.T, strict=True)
  ]
  mean = found.mean(axis=1)
  rows += [
    ["mean", f"{mean[best]:.1%}", f"{mean.mean():.1%}", f"{mean.min():.1%}", f"{mean.max():.1%}"],
    ["failed (over 5%)", *(str(int((e > 0.05).sum())) for e in (found[best], found.mean(axis=0)))]
    + ["", ""],
  ]
  columns = ["task", f"restart {best}", "mean", "least", "most"]
  title = f"Test error; restart {best} of {len(found)} has the least training error"
  text = table(title, columns, rows)
  (workdir / "report.md").write_text(text)
  np.savetxt(workdir / "errors.csv", found, fmt="%.4f", delimiter=",")
  console.print(f"Table: {workdir / 'report.md'}   all restarts: {workdir / 'errors.csv'}")
