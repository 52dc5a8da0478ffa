"""Which cells a comparison has, and what each is: a task, a memory, sizes, a way to train."""

import dataclasses
import hashlib

from experiments.comparison import memories, shell, tasks
from experiments.comparison.program import ENOUGH, Training
from experiments.comparison.shell import Candidate, Ports, Size
from experiments.comparison.tasks import Setup

RATES = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclasses.dataclass(frozen=True)
class Budget:
  """A named amount of work.

  Attributes:
    size: of all models.   rates: learning rates.   batch: examples of a step.
    examples: of a test setting.   walkers: of a stream.
  """

  size: Size
  rates: tuple[float, ...] = RATES
  batch: int = 16
  block: int = 50
  examples: int = 100
  walkers: int = 8


BUDGETS = {
  "tiny": Budget(
    Size(dim=8, depth=1, heads=2, segment=4, conv=3, state=512, parameters=1500),
    rates=(1e-3, 1e-2), batch=4, block=3, examples=4, walkers=4,
  ),
  "small": Budget(Size()),
  "medium": Budget(
    Size(dim=64, depth=2, heads=2, segment=16, state=16384, parameters=160_000), batch=64,
    examples=250, walkers=50,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
  """One memory on one task.

  Attributes:
    setup: the task.   memory: its name.   size: with the state that the name asks for.
    hidden: width of the feed-forwards.   config: hash of all that decides the result.
  """

  setup: Setup
  memory: str
  size: Size
  candidate: Candidate
  hidden: int
  training: Training
  budget: Budget
  config: str

  @property
  def name(self) -> str:
    """Of its files."""
    memory = self.memory.replace(":", ".").replace("@", "_at_")
    return f"{self.setup.name}--{memory}--{self.config}"

  @property
  def ports(self) -> Ports:
    return shell.ports(self.setup.train[0])

  def make(self, key):
    """The model with parameters drawn from `key`."""
    return shell.build(self.ports, self.candidate, self.size, self.hidden, key)


def cells(
  task_names: list[str], memory_names: list[str], budget_name: str, seeds: int, **changes
) -> list[Cell]:
  """All cells, task by task.

  Args:
    changes: `steps`, `batch`, `conv`, `rates`, `enough` in place of the budget's; None: no change.

  Raises:
    ValueError: an unknown name; a task whose settings differ in what goes in and comes out.
  """
  changes = {name: value for name, value in changes.items() if value is not None}
  budget = BUDGETS[budget_name]
  size = dataclasses.replace(budget.size, conv=changes.pop("conv", budget.size.conv))
  found = []
  fitted = {}
  for memory in memory_names:
    own = memories.sized(memory, size)
    candidate = memories.candidate(memory, own)
    fitted[memory] = own, candidate, shell.fitting_hidden(candidate, own)
  for task in task_names:
    setup = tasks.setup(task, budget_name)
    check_ports(setup)
    for memory, (own, candidate, hidden) in fitted.items():
      training = Training(
        rates=changes.get("rates", budget.rates), seeds=tuple(range(seeds)),
        steps=changes.get("steps", setup.steps), batch=changes.get("batch", budget.batch),
        block=budget.block, enough=changes.get("enough", ENOUGH),
      )  # fmt: skip
      told = [_settings(setup), memory, own, hidden, training, budget.examples]
      told += [budget.walkers] if setup.streams else []
      told += [training.enough] if training.enough != ENOUGH else []
      config = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
      found.append(Cell(setup, memory, own, candidate, hidden, training, budget, config))
  return found


def _settings(setup: Setup) -> tuple:
  """What decides the examples: of tasks the fields that are not at their defaults, so that one
  that a task gains later changes no cell."""
  tests = [(test.varies, test.value, given(test.task)) for test in setup.tests]
  return setup.name, setup.metric, setup.steps, setup.streams, list(map(given, setup.train)), tests


def given(task) -> str:
  """A task as its name and the fields that are not at their defaults."""
  if not dataclasses.is_dataclass(task):
    return repr(task)
  fields = [(f, getattr(task, f.name)) for f in dataclasses.fields(task)]
  given = ", ".join(f"{f.name}={value!r}" for f, value in fields if value != f.default)
  return f"{type(task).__name__}({given})"


def check_ports(setup: Setup) -> None:
  """Raises ValueError if the settings of a task differ in what goes in and comes out."""
  first = shell.ports(setup.train[0])
  for task in (*setup.train, *(test.task for test in setup.tests)):
    if shell.ports(task) != first:
      raise ValueError(
        f"the settings of task {setup.name} differ in what goes in and comes out: {first} in "
        f"{setup.train[0]}, {shell.ports(task)} in {task}; give all the same vocab"
      )
