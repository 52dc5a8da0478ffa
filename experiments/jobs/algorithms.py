"""Small algorithms: memories beside an LSTM of equal size, trained on short sequences and then
asked for long ones."""

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
from experiments.jobs.algorithm_tasks import Size, Task, task_of
from experiments.jobs.text import profiling
from experiments.metrics import WATCHING, MetricsWriter, read
from experiments.usage import PREFIX, memory_usage
from memjax import training
from memjax.core import Memory, checks, clean, replace, scan
from memjax.core.layers import Linear
from memjax.slots import DifferentiableNeuralComputer, NeuralTuringMachine
from memjax.slots.controllers import LSTM
from memjax.tasks import copying

MAY_CHANGE = ("sizes", "evaluation", "checkpoint", *WATCHING)
VALIDATION, TEST = 2**31 - 2, 2**31 - 1  # seeds of sequences that no training step uses


class Recurrent(Memory):
  """An LSTM and a linear output, as memory `[B, T, dim] -> [B, T, out]`."""

  def __init__(self, dim: int, *, out: int, hidden: int, layers: int = 1, rngs: nnx.Rngs):
    self.dim = dim
    self.lstm = LSTM(dim, 0, hidden, layers=layers, rngs=rngs)
    self.out = Linear(hidden, out, bias=True, rngs=rngs)

  def init_state(self, batch):
    return self.lstm.init_state(batch)

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    inputs = self.lstm.inputs(clean(x, valid))
    nothing = jnp.zeros((x.shape[0], 0))
    init = None if reset is None else self.init_state(x.shape[0])
    step = lambda x_t, state, context: self.lstm.step(x_t, nothing, state)  # noqa: E731
    h, state = scan(step, inputs, state, init=init, reset=reset, valid=valid)
    return self.out(h).astype(x.dtype), state


class Numbers:
  """0, 1, 2, ...: each is the seed of a batch, which is made on the device."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    self.next += 1
    return {"number": np.int32(self.next - 1)}

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


def build(config) -> dict[str, Memory]:
  """The memories that the recipe names, and the LSTM whose number of parameters is nearest to that
  of the largest of them.

  Raises:
    ValueError: the recipe names a memory that is not here, or none.
  """
  if not config.memories or not set(config.memories) <= set(MEMORIES):
    raise ValueError(
      f"config.memories={tuple(config.memories)} must be some of {', '.join(MEMORIES)}"
    )
  task = task_of(config)
  made = {name: MEMORIES[name](config, task) for name in config.memories}
  most = max(map(models.parameters, made.values()))
  lstm = functools.partial(Recurrent, task.inputs, out=task.outputs, layers=config.lstm.layers)

  @functools.cache
  def distance(hidden):
    made = nnx.eval_shape(lambda: lstm(hidden=hidden, rngs=nnx.Rngs(0)))
    return abs(models.parameters(made) - most)

  hidden = config.lstm.hidden or _lowest(distance, 1, 1024)
  return made | {"lstm": lstm(hidden=hidden, rngs=nnx.Rngs(config.seed))}


def _ntm(config, task: Task) -> Memory:
  made = config.ntm
  return NeuralTuringMachine(
    task.inputs, out=task.outputs, slots=made.slots, width=made.width, hidden=made.hidden,
    read_heads=made.heads, write_heads=made.heads, shift=made.shift, controller=made.controller,
    start=made.start, rngs=nnx.Rngs(config.seed),
  )  # fmt: skip


def _dnc(config, task: Task) -> Memory:
  made = config.dnc
  return DifferentiableNeuralComputer(
    task.inputs, out=task.outputs, slots=made.slots, width=made.width, hidden=made.hidden,
    read_heads=made.read_heads, rngs=nnx.Rngs(config.seed),
  )  # fmt: skip


MEMORIES = {"ntm": _ntm, "dnc": _dnc}


def _lowest(of, low: int, high: int) -> int:
  """Where `of`, which falls and then rises, is least."""
  while high - low > 2:
    middle = (low + high) // 2
    low, high = (low, middle + 1) if of(middle) <= of(middle + 1) else (middle, high)
  return min(range(low, high + 1), key=of)


def nats(logits, copies) -> jax.Array:
  """Mean cross-entropy of a sequence."""
  each = optax.sigmoid_binary_cross_entropy(logits, copies.targets)
  return jnp.sum(each * copies.mask[:, :, None]) / len(logits)


def make_loss(config):
  """Cross-entropy in nats, and wrong bits, of a sequence; batches are `{"number": seed}`."""
  task = task_of(config)

  def loss(model, memory, batch, key):
    del key
    seed = jax.random.fold_in(jax.random.key(config.seed), batch["number"])
    copies = task.train(seed, config.batch_size)
    logits, _ = model(copies.inputs, model.init_state(config.batch_size))
    total = nats(logits, copies) * config.batch_size
    wrong = jnp.mean(copying.wrong_bits(logits, copies).astype(jnp.float32))
    return training.LossOutput(total, jnp.float32(config.batch_size), memory, {"wrong_bits": wrong})

  return loss


def errors(model, size: Size, config, seed: int) -> tuple[float, float]:
  """Mean wrong bits, and nats, of a sequence of a size that was not trained on."""
  task = task_of(config)
  model = with_room(model, task.stored(size))

  @jax.jit
  def batch_errors(model, key):
    copies = task.ask(key, config.batch_size, size)
    logits, _ = model(copies.inputs, model.init_state(config.batch_size))
    return jnp.stack([jnp.mean(copying.wrong_bits(logits, copies)), nats(logits, copies)])

  keys = jax.random.split(jax.random.key(seed), config.evaluation.batches)
  wrong, cost = np.mean([batch_errors(model, key) for key in keys], axis=0)
  return float(wrong), float(cost)


def with_room(model, vectors: int):
  """A computer with slots for so many vectors, and a tenth more: it has no parameters of slots."""
  if not isinstance(model, DifferentiableNeuralComputer):
    return model
  return replace(model, slots=max(model.slots, vectors + vectors // 10 + 1))


def read_only(model, memory, inputs):
  """Runs a model on `inputs [B, T, D]`, for `memory_usage`."""
  del memory
  return model(inputs, model.init_state(len(inputs)))[1]


@dataclasses.dataclass
class Trained:
  """One trained model, its wrong bits by size, and what its training took."""

  name: str
  model: Memory
  wrong: dict[Size, float]
  seconds: float
  curve: list[dict[str, float]]


def train(config, folder: pathlib.Path, name: str, model: Memory, stop) -> Trained | None:
  """Trains one model, or goes on from its newest checkpoint; None when a signal stopped it."""
  part = config.optimizer
  optimizer = optax.chain(optax.clip_by_global_norm(part.clip), optax.adam(part.learning_rate))
  state = training.init_train_state(model, optimizer, key=jax.random.key(config.seed))
  writer = MetricsWriter(folder, start=0)
  task = task_of(config)
  size, bits = task.watched, task.due(task.watched)
  watched = task.ask(jax.random.key(VALIDATION), config.batch_size, size).inputs

  def start(step, extra):
    nonlocal writer
    writer.close()
    writer = MetricsWriter(folder, start=step, config=config)

  def evaluate(state):
    wrong, cost = errors(state.model, size, config, VALIDATION)
    return {"wrong": wrong, "nats": cost} | memory_usage(state.model, [watched], read_only)

  def evaluated(step, metrics, best):
    wrong, seconds = metrics["wrong"], metrics["seconds"]
    row = {"sequences": step * config.batch_size, "wrong_bits": wrong, "nats": metrics["nats"]}
    row |= {name: value for name, value in metrics.items() if name.startswith(PREFIX)}
    writer.write(step, row | {"seconds": seconds})
    console.print(
      f"{name}  step {step}/{config.steps}  {wrong:.2f} wrong bits of {bits} at {size} "
      f"{task.counted}  {seconds:.0f} s"
    )

  with (
    training.Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep) as checkpoints,
    profiling(config, folder) as around_step,
  ):
    result = training.fit(
      state, training.make_train_step(make_loss(config), optimizer), Numbers(), steps=config.steps,
      evaluate=evaluate, evaluate_every=config.evaluation.every, best_metric="nats",
      until=lambda metrics: metrics["nats"] < config.enough,
      checkpoints=checkpoints, save_every=config.checkpoint.every, stop=stop,
      on_start=start, on_evaluation=evaluated, around_step=around_step,
    )  # fmt: skip
    writer.close()
    if result.stopped:
      return None
    model = result.state.model
    if result.best_step != result.step:  # late in the training a loss may leap for a while
      model = checkpoints.restore(result.state, step=result.best_step).tree.model
  wrong = {size: errors(model, size, config, TEST)[0] for size in config.sizes}
  return Trained(name, model, wrong, result.seconds, read(folder / "metrics.csv"))


def run(config, workdir: pathlib.Path) -> bool:
  """Trains all models, then reports. Returns False when a signal stopped it."""
  trained = []
  with cli.one_line():
    contenders = build(config)
  with training.StopOnSignal() as stop:
    for name, model in contenders.items():
      console.print(f"{name}: {models.parameters(model):,} parameters")
      result = train(config, workdir / name, name, model, stop)
      if result is None:
        return False
      trained.append(result)
  task = task_of(config)
  columns = ["model", "parameters", "seconds", *map(str, config.sizes)]
  rows = [
    [t.name, f"{models.parameters(t.model):,}", f"{t.seconds:.0f}"]
    + [f"{t.wrong[n]:.2f}" for n in config.sizes]
    for t in trained
  ]
  chance = ["chance", "-", "-", *(f"{task.due(n) / 2:.0f}" for n in config.sizes)]
  title = f"Wrong bits of a sequence by {task.counted}; trained up to {task.watched}"
  (workdir / "report.md").write_text(table(title, columns, [*rows, chance]))
  picture(workdir / "curves.png", trained, config)
  console.print(f"Picture: {workdir / 'curves.png'}   table: {workdir / 'report.md'}")
  return True


def picture(path: pathlib.Path, trained: list[Trained], config) -> None:
  """Wrong bits over sequences seen, and over the size asked for, as a PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  task = task_of(config)
  figure = Figure(figsize=(9, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2)
  for result in trained:
    left.plot(
      [row["sequences"] for row in result.curve],
      [row["wrong_bits"] for row in result.curve],
      marker=".",
      label=result.name,
    )
    sizes = list(map(str, result.wrong))
    right.plot(sizes, list(result.wrong.values()), marker="o", label=result.name)
  left.set(xlabel="sequences seen", ylabel=f"wrong bits at {task.watched}")
  right.set(xlabel=f"{task.counted} asked for", ylabel="wrong bits of a sequence", yscale="symlog")
  for panel in (left, right):
    panel.grid(alpha=0.3)
    panel.legend()
  figure.savefig(path, dpi=120)
