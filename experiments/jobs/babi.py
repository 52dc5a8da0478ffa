"""bAbI: end-to-end memory networks on the real files, trained jointly on all tasks, in several
restarts of which the one with the least training error counts (arXiv 1503.08895)."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import cli, models
from experiments.console import console, table
from experiments.jobs import babi_models
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


def logits(net, batch, key) -> jax.Array:
  """`[B, answers]`, each sentence of the batch being embedded once."""
  stories = jnp.take(net.encode(batch["sentences"]), batch["story"], axis=0)
  return net.answer(batch["question"], stories, batch["count"], context=Context(key=key))


def started(nets, linear: bool):
  """Networks with or without a softmax over their slots, of which only `memn2n` has a choice."""
  return replace(nets, linear=linear) if isinstance(nets, EndToEndMemoryNetwork) else nets


def make_loss(linear: bool, *, same_noise: bool = False):
  """The loss of a stack of restarts `[R, ...]` on one batch, each with a noise of its own or, which
  is cheaper to draw, all with the same."""

  def one(net, batch, key):
    nats, wrong = babi_models.loss(net, batch, key)
    return jnp.sum(nats), jnp.mean(wrong)

  def loss(nets, memory, batch, key):
    nets = started(nets, linear)
    keys = key if same_noise else jax.random.split(key, jax.tree.leaves(nets)[0].shape[0])
    nats, wrong = jax.vmap(one, in_axes=(0, None, None if same_noise else 0))(nets, batch, keys)
    # Restarts share no parameter: the sum trains each on its own loss, summed over the batch.
    metrics = {"error": jnp.mean(wrong), "least_error": jnp.min(wrong)}
    return training.LossOutput(jnp.sum(nats), jnp.float32(1), memory, metrics)

  return loss


def clipped(rate: optax.Schedule, clip: float, optimizer: str = "sgd"):
  """SGD, or Adam, with the norm of each matrix of each restart clipped."""

  def cut(g):
    norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)), keepdims=True))
    return g * jnp.minimum(1, clip / jnp.maximum(norm, 1e-12))

  clipping = optax.stateless(lambda updates, params: jax.tree.map(cut, updates))
  return optax.chain(clipping, {"sgd": optax.sgd, "adam": optax.adam}[optimizer](rate))


@jax.jit
def _encoded(nets, sentences):
  return jax.vmap(lambda net: net.encode(sentences))(nets)


@jax.jit
def _wrong(nets, encoded, batch):
  def one(net, encoded):
    stories = jnp.take(encoded, batch["story"], axis=0)
    answers = net.answer(batch["question"], stories, batch["count"])
    return jnp.argmax(answers, axis=-1) != batch["answer"]

  return jax.vmap(one)(nets, encoded)


def errors(nets, questions: babi.Questions, size: int = 250) -> np.ndarray:
  """Shares of wrong answers `[R, tasks]`, by the tasks of `questions` in order."""
  encoded = _encoded(nets, jnp.asarray(questions.sentences))
  found = []
  names = ("story", "count", "question", "answer")
  for start in range(0, len(questions), size):
    part = {name: getattr(questions, name)[start : start + size] for name in names}
    found.append(np.asarray(_wrong(nets, encoded, part)))
  found = np.concatenate(found, axis=1)
  tasks = dict.fromkeys(questions.task.tolist())
  return np.stack([found[:, questions.task == task].mean(axis=1) for task in tasks], axis=1)


@dataclasses.dataclass(frozen=True)
class Data:
  """Questions of some tasks, the number of ids, words of the longest sentence, and sentences of the
  longest story, as far as a network has slots."""

  train: babi.Questions
  validation: babi.Questions
  test: babi.Questions
  vocab: int
  words: int
  slots: int


def read_files(config, tasks: tuple[int, ...]) -> Data:
  """The questions of `tasks`, with a vocabulary of their own."""
  if not config.data.path:
    raise ValueError(
      "config.data.path is empty; give the folder of the bAbI files, such as "
      "--config.data.path=tasks_1-20_v1-2/en"
    )
  files = {
    split: {task: babi.load(config.data.path, task, split) for task in tasks}
    for split in ("train", "test")
  }
  every = (e for split in files.values() for examples in split.values() for e in examples)
  known, length = babi.vocabulary(every)
  longest = max(len(e.story) for examples in files["train"].values() for e in examples)
  slots = min(config.model.slots, longest)
  arrays = functools.partial(babi.to_arrays, known=known, slots=slots, length=length)
  train, test = arrays(files["train"]), arrays(files["test"])
  order = np.random.default_rng(config.seed).permutation(len(train))
  held = int(config.data.validation * len(train))
  kept, held_out = train.take(np.sort(order[held:])), train.take(order[:held])
  return Data(kept, held_out, test, len(known), length, slots)


def build(config, data: Data):
  """All restarts as one network with stacked parameters `[R, ...]`."""
  make = lambda key: babi_models.make(config, data, nnx.Rngs(params=key))  # noqa: E731
  return jax.vmap(make)(jax.random.split(jax.random.key(config.seed), config.restarts))


def ask(net, memory, batch):
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
    optimizer = clipped(rate, config.clip, config.optimizer)

    def evaluate(state, linear=linear):
      found = errors(started(state.model, linear), validation).mean(axis=1)
      best = jax.tree.map(lambda a: a[found.argmin()], started(state.model, linear))
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
    data = read_files(config, tuple(config.data.tasks or babi.TASKS))
    nets = build(config, data)
  parameters = models.parameters(nets) // config.restarts
  console.print(
    f"{len(data.train):,} questions to train on, {len(data.validation):,} to validate, "
    f"{len(data.test):,} to test; {data.vocab} ids, {config.restarts} networks of {parameters:,} "
    "parameters"
  )
  with training.StopOnSignal() as stop:
    nets = train(config, workdir, nets, data.train, data.validation, stop)
  if nets is None:
    return False
  tasks = list(dict.fromkeys(data.test.task.tolist()))
  best = int(errors(nets, data.train).mean(axis=1).argmin())
  report(workdir, np.full(len(tasks), best), errors(nets, data.test), tasks)
  return True


def report(workdir: pathlib.Path, best: np.ndarray, found: np.ndarray, tasks: list[int]) -> None:
  """Test errors `found [R, tasks]` by task: of the restart `best [tasks]`, that with the least
  training error, and of all."""
  chosen = np.take_along_axis(found, best[None], axis=0)[0]

  def row(name, restart, least, e):
    return [name, restart, *(f"{share:.1%}" for share in (least, e.mean(), e.min(), e.max()))]

  each = zip(tasks, best, chosen, found.T, strict=True)
  rows = [row(f"qa{task}", f"{restart}", least, e) for task, restart, least, e in each]
  rows.append(row("mean", "", chosen.mean(), found.mean(axis=1)))
  failed = [str(int((e > 0.05).sum())) for e in (chosen, found.mean(axis=0))]
  rows.append(["failed (over 5%)", "", *failed, "", ""])
  columns = ["task", "restart", "its error", "mean", "least", "most"]
  title = f"Test error of the restart, of {len(found)}, with the least training error, and of all"
  text = table(title, columns, rows)
  (workdir / "report.md").write_text(text)
  np.savetxt(workdir / "errors.csv", found, fmt="%.4f", delimiter=",")
  console.print(f"Table: {workdir / 'report.md'}   all restarts: {workdir / 'errors.csv'}")
