"""Random facts learned by heart: how many bits models of equal FLOPs hold, with a memory in place
of a feed-forward layer and without."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import cli, models
from experiments.console import console, table
from experiments.jobs.text import profiling
from experiments.metrics import WATCHING, MetricsWriter, read
from experiments.usage import PREFIX, memory_usage
from memjax import training
from memjax.core import split
from memjax.parametric import PEER, MemoryPlus, ProductKeyMemory
from memjax.tasks import facts
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

MAY_CHANGE = ("evaluation", "checkpoint", *WATCHING)
MEMORIES = {"product_keys": ProductKeyMemory, "memory_plus": MemoryPlus, "peer": PEER}
QUERY_NORM = {"product_keys": {"query_norm": "rms"}, "peer": {"query_norm": "rms"}}


class Lessons:
  """All facts again and again, in another order each time, as batches of their numbers."""

  def __init__(self, facts: int, batch_size: int, seed: int):
    self.facts, self.batch_size, self.seed, self.next = facts, batch_size, seed, 0
    self.order = functools.lru_cache(1)(self._order)

  def _order(self, exposure: int) -> np.ndarray:
    return np.random.default_rng((self.seed, exposure)).permutation(self.facts).astype(np.int32)

  def __next__(self):
    exposure, batch = divmod(self.next, self.facts // self.batch_size)
    self.next += 1
    start = batch * self.batch_size
    return {"index": self.order(exposure)[start : start + self.batch_size]}

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


def world_of(config) -> facts.World:
  """The recipe's people, names and attributes."""
  return facts.World(config.people, tuple(config.names), tuple(config.choices))


def build(config) -> dict[str, LanguageModel]:
  """The dense model, and for each memory and number of keys one of the same FLOPs per token.

  Attention, a feed-forward layer, and a second one or the memory. What the memory costs less or
  more than the feed-forward layer that it replaces, the other one gets or gives.
  """
  part, world = config.model, world_of(config)

  def make(last, hidden, seed=config.seed):
    attention = functools.partial(Attention, heads=part.heads)
    feed_forward = functools.partial(FeedForward, hidden=hidden)
    pattern = (attention, feed_forward, feed_forward if last is None else last)
    body = functools.partial(Stack, pattern=pattern)
    return LanguageModel(world.vocab, part.dim, body=body, rngs=nnx.Rngs(seed))

  def cost(last, hidden):
    made = nnx.eval_shape(lambda: make(last, hidden))
    return models.flops_per_token(made, len(world.names) + 1)

  target, unit = cost(None, part.hidden), (cost(None, 2) - cost(None, 1)) / 2
  made = {"dense": make(None, part.hidden)}
  for name in part.memories:
    for keys in part.memory_keys:
      last = functools.partial(
        MEMORIES[name], keys=keys, heads=part.memory_heads, top_k=min(part.top_k, keys),
        query_dim=part.query_dim, **QUERY_NORM.get(name, {}),
      )  # fmt: skip
      hidden = 1 + round((target - cost(last, 1)) / unit)
      if hidden < 1:
        raise ValueError(
          f"{name} with {keys} keys costs more FLOPs than the dense model of "
          f"config.model.hidden={part.hidden}; give it more"
        )
      made[f"{name}_{keys}"] = make(last, hidden)
  return made


def answer(model: LanguageModel, ids: jax.Array) -> jax.Array:
  """Logits `[B, vocab]` after the last token of questions `[B, T]`."""
  h, _ = model.body(model.embed(ids), model.init_state(len(ids)))
  return model.logits(h[:, -1])


def make_loss(config, known: facts.Facts) -> Callable:
  """Cross-entropy of the answers in nats; batches are `{"index": numbers of facts}`."""
  world = world_of(config)

  def loss(model, memory, batch, key):
    del key
    ids, answers = facts.questions(known, batch["index"], world)
    nats = optax.softmax_cross_entropy_with_integer_labels(answer(model, ids), answers)
    return training.LossOutput(jnp.sum(nats), jnp.float32(len(answers)), memory)

  return loss


@dataclasses.dataclass(frozen=True)
class Held:
  """What a model holds of some people's facts: bits by loss, by accuracy and at least, and the
  share of right answers."""

  bits: float
  bits_by_accuracy: float
  bound: float
  accuracy: float


@functools.partial(jax.jit, static_argnames="world")
def _examine(model, people, index, world):
  ids, answers = facts.questions(people, index, world)
  logits = answer(model, ids)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
  return nats, jnp.argmax(logits, axis=-1) == answers


def indices(world: facts.World, size: int) -> list[jax.Array]:
  """The numbers of all facts, `size` at a time."""
  return [jnp.arange(n, n + size, dtype=jnp.int32) for n in range(0, world.facts, size)]


def examine(model, people: facts.Facts, config) -> Held:
  """Asks every fact of `people`."""
  world, size = world_of(config), config.batch_size
  parts = [_examine(model, people, index, world) for index in indices(world, size)]
  nats, right = (
    np.concatenate(part).reshape(-1, len(world.choices)) for part in zip(*parts, strict=True)
  )
  return Held(
    facts.bits_by_loss(nats, world.choices),
    *facts.bits_by_accuracy(right, world.choices),
    float(right.mean()),
  )


@dataclasses.dataclass
class Trained:
  """One trained model, what it holds of the people it learned and of strangers, and what its
  training took."""

  name: str
  model: LanguageModel
  known: Held
  strangers: Held
  seconds: float
  curve: list[dict[str, float]]

  @property
  def table(self) -> int:
    """Parameters in tables."""
    arrays = split(self.model)[0]
    return sum(arrays[name].size for name in training.table_names(self.model))

  @property
  def parameters(self) -> int:
    return models.parameters(self.model)


def train(config, folder: pathlib.Path, name: str, model: LanguageModel, stop) -> Trained | None:
  """Trains one model, or goes on from its newest checkpoint; None when a signal stopped it."""
  world, part = world_of(config), config.optimizer
  known, strangers = facts.sample(jax.random.key(config.seed), world)
  each = world.facts // config.batch_size  # steps for one exposure of all facts
  steps = config.exposures * each
  rate = functools.partial(training.warmup_decay, steps=steps, warmup=part.warmup, final=0.01)
  peak = part.learning_rate if training.table_names(model) else part.dense_learning_rate
  optimizer = training.make_optimizer(
    model, learning_rate=rate(peak),
    table_learning_rate=rate(part.table_learning_rate), clip=part.clip, weight_decay=0.0,
  )  # fmt: skip
  state = training.init_train_state(model, optimizer, key=jax.random.key(config.seed))
  writer = MetricsWriter(folder, start=0)

  def start(step, extra):
    nonlocal writer
    writer.close()
    writer = MetricsWriter(folder, start=step, config=config)

  def ask(model, memory, index):
    answer(model, facts.questions(known, index, world)[0])
    return memory

  def evaluate(state):
    held = examine(state.model, known, config)
    used = memory_usage(state.model, indices(world, config.batch_size), ask)
    return {"bits": held.bits, "accuracy": held.accuracy, "loss": -held.bits} | used

  def evaluated(step, metrics, best):
    exposures, seconds = step // each, metrics["seconds"]
    row = {"exposures": exposures, "bits": metrics["bits"], "accuracy": metrics["accuracy"]}
    row |= {name: value for name, value in metrics.items() if name.startswith(PREFIX)}
    writer.write(step, row | {"seconds": seconds})
    console.print(
      f"{name}  exposure {exposures}/{config.exposures}  {metrics['bits'] / 1000:.1f} of "
      f"{world.bits / 1000:.0f} kbit  {metrics['accuracy']:.1%} right  {seconds:.0f} s"
    )

  with (
    training.Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep) as checkpoints,
    profiling(config, folder) as around_step,
  ):
    result = training.fit(
      state, training.make_train_step(make_loss(config, known), optimizer),
      Lessons(world.facts, config.batch_size, config.seed), steps=steps,
      evaluate=evaluate, evaluate_every=config.evaluation.every * each,
      checkpoints=checkpoints, save_every=config.checkpoint.every * each, stop=stop,
      on_start=start, on_evaluation=evaluated, around_step=around_step,
    )  # fmt: skip
    writer.close()
    if result.stopped:
      return None
  model = result.state.model
  held = [examine(model, people, config) for people in (known, strangers)]
  return Trained(name, model, *held, result.seconds, read(folder / "metrics.csv"))


def run(config, workdir: pathlib.Path) -> bool:
  """Trains all models, then reports. Returns False when a signal stopped it."""
  trained = []
  with cli.one_line():
    world = world_of(config)
    if world.facts % config.batch_size:
      raise ValueError(f"batch_size={config.batch_size} does not divide {world.facts} facts")
    contenders = build(config)
  console.print(f"{world.people:,} people, {world.facts:,} facts, {world.bits / 1000:.0f} kbit")
  with training.StopOnSignal() as stop:
    for name, model in contenders.items():
      result = train(config, workdir / name, name, model, stop)
      if result is None:
        return False
      trained.append(result)
  report(workdir, trained, world)
  picture(workdir / "facts.png", trained, world)
  console.print(f"Picture: {workdir / 'facts.png'}   table: {workdir / 'report.md'}")
  return True


def report(workdir: pathlib.Path, trained: list[Trained], world: facts.World) -> None:
  """Prints the table, and writes it to `report.md`: kbit held by loss, by right answers and at
  least (Fano); what strangers' facts would measure (kbit, right), and chance."""
  columns = [
    "model", "params", "in table", "kFLOP/token", "kbit", "by right", "at least", "bit/param",
    "bit/FLOP", "right", "strangers", "seconds",
  ]  # fmt: skip
  rows = []
  for one in trained:
    flops = models.flops_per_token(one.model, len(world.names) + 1)
    held, strangers = one.known, one.strangers
    rows.append([
      one.name, f"{one.parameters:,}", f"{one.table:,}", f"{flops / 1e3:.1f}",
      *(f"{bits / 1000:.1f}" for bits in (held.bits, held.bits_by_accuracy, held.bound)),
      f"{held.bits / one.parameters:.3f}", f"{held.bits / flops:.2f}", f"{held.accuracy:.1%}",
      f"{strangers.bits / 1000:.1f}, {strangers.accuracy:.1%}", f"{one.seconds:.0f}",
    ])  # fmt: skip
  title = f"Bits of {world.facts:,} facts ({world.bits / 1000:.0f} kbit) after training"
  chance = sum(1 / n for n in world.choices) / len(world.choices)
  rows.append(["chance", *["-"] * 8, f"{chance:.1%}", f"0, {chance:.1%}", "-"])
  (workdir / "report.md").write_text(table(title, columns, rows))


def picture(path: pathlib.Path, trained: list[Trained], world: facts.World) -> None:
  """Bits, bits per parameter and accuracy over rows of the table, as a PNG; dense ones as lines."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  panels = {
    f"kbit stored of {world.bits / 1000:.0f}": lambda t: t.known.bits / 1000,
    "bits per parameter": lambda t: t.known.bits / t.parameters,
    "right answers": lambda t: t.known.accuracy,
  }
  lines: dict[str, list[Trained]] = {}
  rows = lambda one: int(one.name.rpartition("_")[2]) ** 2  # noqa: E731
  sizes = sorted({rows(one) for one in trained if one.table})
  for one in trained:
    if one.table:
      lines.setdefault(one.name.rpartition("_")[0], []).append(one)
  for panel, (label, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
    for one in trained:
      if not one.table:
        panel.axhline(value(one), color="gray", linestyle="--", label=one.name)
    for name, group in lines.items():
      panel.plot([rows(one) for one in group], [value(one) for one in group], "o-", label=name)
    panel.set_xscale("log", base=2)
    panel.set(xlabel="rows of the table", ylabel=label, xticks=sizes, xticklabels=sizes)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend()
  figure.savefig(path, dpi=120)
