"""The tasks that `experiments.compare` knows by name: what is trained on, and what is tested.

Test settings are named by what varies in them; none is looked at before training ends. A user's own
task is `module:Name`: a `memjax.tasks.task.Task`, or a function `budget name -> Setup`.
"""

import dataclasses
import inspect
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from experiments.comparison.memories import load
from memjax.tasks.copying import Copy
from memjax.tasks.interference import Interference
from memjax.tasks.mqar import MQAR
from memjax.tasks.needle import Needle
from memjax.tasks.task import Batch, Task, acc_by
from memjax.tasks.tmaze import TMaze


@dataclasses.dataclass(frozen=True)
class Test:
  """One setting that is tested: `task` with `varies` (its word in tables and plots) at `value`."""

  varies: str
  value: int
  task: Task


@dataclasses.dataclass(frozen=True)
class Setup:
  """A task of the comparison.

  Attributes:
    name: in files and tables.   metric: "acc", or "em" (whole examples) where most of the targets
      need no memory.
    train: settings, mixed evenly in every batch.   tests: see `Test`.
    steps: of training, at most.
    details: `(test, predicted, batch) -> {(metric, value): (score, n)}`, further numbers; or None.
    streams: lengths to which memories of constant state are run on as one stream, beyond the tests.
    due: places of a training example that count, at most: training makes logits for no others.
      None: for all.
  """

  name: str
  metric: str
  train: tuple[Task, ...]
  tests: tuple[Test, ...]
  steps: int
  details: Callable | None = None
  streams: tuple[int, ...] = ()
  due: int | None = None

  @property
  def longest(self) -> int:
    """Tokens of the longest of all settings but streams."""
    return max(_length(task) for task in (*self.train, *(test.task for test in self.tests)))


def _takes_one(function) -> bool:
  return len(inspect.signature(function).parameters) == 1


def _length(task: Task) -> int:
  import jax

  shape = jax.eval_shape(lambda: task.sample(0, 0, jnp.arange(2))).inputs.shape
  return shape[1]


def _mqar(budget: str) -> Setup:
  vocab, steps = {"tiny": (64, 6), "small": (128, 900), "medium": (8192, 8000)}[budget]
  make = lambda pairs, length, power=0.01: MQAR(pairs, length, vocab, power)  # noqa: E731
  if budget == "tiny":
    tests = Test("pairs", 4, make(4, 16)), Test("length", 32, make(2, 32))
    return Setup("mqar", "acc", (make(2, 16),), tests, steps)
  train = (make(4, 64), make(8, 64)) if budget == "small" else (make(4, 64), make(8, 128))
  pairs = ((4, 64), (8, 64), (16, 64), (32, 128))
  tests = [Test("pairs", p, make(p, n)) for p, n in pairs]
  tests += [Test("length", n, make(4, n, 1.0)) for n in (64, 128, 256)]
  return Setup("mqar", "acc", train, tuple(tests), steps, due=8)


def _mqar_published(budget: str) -> Setup:
  """The first setting of the paper, with all of its ids: 4 pairs in 64 tokens."""
  if budget == "tiny":
    return dataclasses.replace(_mqar(budget), name="mqar_published")
  make = lambda pairs, length: MQAR(pairs, length)  # noqa: E731
  tests = tuple(Test("pairs", p, make(p, n)) for p, n in ((4, 64), (8, 64), (16, 64), (32, 128)))
  steps = {"small": 8000, "medium": 20_000}[budget]
  return Setup("mqar_published", "acc", (make(4, 64),), tests, steps, due=4)


def _copy(budget: str) -> Setup:
  make = lambda n: Copy(n, n)  # noqa: E731
  if budget == "tiny":
    return Setup("copy", "acc", (make(2),), (Test("length", 3, make(3)),), 6)
  longest = {"small": 8, "medium": 20}[budget]
  train = tuple(make(n) for n in (longest // 4, longest // 2, longest))
  lengths = {"small": (4, 8, 12, 16, 32), "medium": (10, 20, 30, 50, 120)}[budget]
  tests = tuple(Test("length", n, make(n)) for n in lengths)
  return Setup("copy", "acc", train, tests, {"small": 800, "medium": 8000}[budget])


def _depths(test: Test, predicted: np.ndarray, batch: Batch) -> dict:
  """Accuracy by fifths of the depth, for the heat map."""
  fifth = jnp.minimum(batch.meta["depth"] // 20, 4)
  batch = dataclasses.replace(batch, meta={"fifth": fifth})
  found = acc_by(jnp.asarray(predicted), batch, "fifth")
  return {("acc_depth", 10 + 20 * part): score for part, score in found.items()}


def _passkey(budget: str) -> Setup:
  make = lambda length: Needle(length, keys=4, values=16, vocab=64)  # noqa: E731
  if budget == "tiny":
    tests = tuple(Test("length", n, make(n)) for n in (16, 32))
    return Setup("passkey", "acc", (make(16),), tests, 6, _depths)
  train = (make(16), make(32))
  tests = tuple(Test("length", n, make(n)) for n in (32, 64, 128, 256, 512))
  return Setup("passkey", "acc", train, tests, {"small": 600, "medium": 8000}[budget], _depths)


def _ages(test: Test, predicted: np.ndarray, batch: Batch) -> dict:
  """How many updates before the last one the answer was told (0: right), and two kinds of others:
  -1 another key's value, -2 none that was told; as shares of all answers."""
  assert isinstance(test.task, Interference)
  turn = np.asarray(test.task.history(jnp.asarray(predicted), batch))[np.asarray(batch.mask)]
  last = test.task.updates - 1
  age = np.where(turn >= 0, last - turn, turn)
  return {
    ("age_share", int(value)): (float(np.mean(age == value)), int(age.size)) for value in set(age)
  }


def _pi(budget: str) -> Setup:
  make = lambda updates: Interference(4, updates, 64)  # noqa: E731
  if budget == "tiny":
    tests = tuple(Test("updates", u, make(u)) for u in (1, 2))
    return Setup("pi", "acc", (make(1),), tests, 6, _ages)
  train = tuple(make(updates) for updates in (1, 2, 4))
  tests = tuple(Test("updates", u, make(u)) for u in (1, 2, 4, 8, 16, 32, 64))
  return Setup("pi", "acc", train, tests, {"small": 800, "medium": 8000}[budget], _ages)


def _tmaze(budget: str) -> Setup:
  if budget == "tiny":
    tests = (Test("length", 10, TMaze(10)),)
    return Setup("tmaze", "em", (TMaze(10),), tests, 6, streams=(40, 200))
  train = tuple(TMaze(length) for length in (10, 20, 30))
  tests = tuple(Test("length", n, TMaze(n)) for n in (30, 90, 300))
  streams = (1000, 3000, 9600, 100_000, 1_000_000)
  steps = {"small": 300, "medium": 4000}[budget]
  return Setup("tmaze", "em", train, tests, steps, streams=streams)


def _tmaze_long(budget: str) -> Setup:
  """Trained on corridors up to three times as long: a state is written to often enough that what
  it drifts to is trained as well. To be trained on after it has learned: `--enough=2`."""
  short = _tmaze(budget)
  if budget == "tiny":
    return dataclasses.replace(short, name="tmaze_long")
  train = tuple(TMaze(length) for length in (10, 30, 60, 90))
  steps = {"small": 1000, "medium": 8000}[budget]
  return dataclasses.replace(short, name="tmaze_long", train=train, steps=steps)


TASKS: dict[str, Callable[[str], Setup]] = {
  "mqar": _mqar, "copy": _copy, "passkey": _passkey, "pi": _pi, "tmaze": _tmaze,
  "tmaze_long": _tmaze_long, "mqar_published": _mqar_published,
}  # fmt: skip


def setup(name: str, budget: str) -> Setup:
  """The task of this name.

  Raises:
    ValueError: the name is unknown, or what it names is no task.
  """
  if ":" in name:
    made = load(name)
    made = made(budget) if inspect.isfunction(made) and _takes_one(made) else made
    if isinstance(made, Task):
      test = Test("length", _length(made), made)
      made = Setup(name.partition(":")[2].lower(), "acc", (made,), (test,), 1500)
    if not isinstance(made, Setup):
      raise ValueError(f"--tasks={name} is {type(made).__name__}, neither a Task nor a Setup")
    return made
  if name not in TASKS:
    raise ValueError(f"--tasks={name}: not one of {', '.join(TASKS)}; your own is module:Name")
  return TASKS[name](budget)
