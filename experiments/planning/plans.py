"""A plan: what a recipe's training step needs and takes on a topology, chip by chip."""

import dataclasses
from typing import Any

from experiments.planning import compiled, steps
from experiments.planning.advice import advice
from experiments.planning.roofline import Exchange, Roofline, exchanges, roofline
from experiments.planning.topologies import Topology, find, stand_in


@dataclasses.dataclass(frozen=True)
class Plan:
  """All of one chip, if not said otherwise.

  Attributes:
    recipe, topology: names.   chips: their number.   mesh: sizes of its axes.
    estimate: "" where it was compiled for the chips themselves, else what it was compiled for.
    dense, table: numbers of parameters, of all chips.
    tokens: of a step, of all chips.
    memory: see `compiled.Memory`.   capacity: bytes there are.   fits: both the program and
      the chip say so.   refusal: what the compiler said.
    model_flops: that the model needs.   hardware_flops: with what is computed twice.
      counted_flops: what the compiler counts, with loops taken once.
    hbm_bytes, host_bytes: moved in a step.   exchanges: see `roofline.Exchange`.
    unknown_loops: exchanges in loops of unknown length, counted once.
    roofline: seconds.
    seconds: that compiling took.   advice: which changes would help.
  """

  recipe: str
  topology: str
  chips: int
  mesh: dict[str, int]
  estimate: str
  dense: int
  table: int
  tokens: int
  memory: compiled.Memory
  capacity: int
  fits: bool
  refusal: str
  model_flops: float
  hardware_flops: float
  counted_flops: float
  hbm_bytes: float
  host_bytes: float
  exchanges: list[Exchange]
  unknown_loops: int
  roofline: Roofline
  seconds: float
  peak_flops: float
  advice: list[str] = dataclasses.field(default_factory=list)

  @property
  def utilisation(self) -> float:
    """Model FLOPs over peak, at best: where everything overlaps."""
    return self.model_flops / self.peak_flops / self.roofline.step

  @property
  def serial_utilisation(self) -> float:
    """The same where nothing overlaps."""
    return self.model_flops / self.peak_flops / self.roofline.serial

  @property
  def tokens_per_second(self) -> float:
    """Of all chips, at best."""
    return self.tokens / self.roofline.step

  def hours(self, tokens: float) -> float:
    """For so many tokens, at best."""
    return tokens / self.tokens_per_second / 3600

  def as_dict(self, tokens: float | None = None) -> dict[str, Any]:
    """Plain values, for JSON."""
    found = dataclasses.asdict(self)
    more = ("utilisation", "serial_utilisation", "tokens_per_second")
    found |= {name: getattr(self, name) for name in more}
    found["roofline"] |= {"step": self.roofline.step, "binds": self.roofline.binds}
    if tokens:
      hours = self.hours(tokens)
      found |= {"token_budget": tokens, "hours": hours, "chip_hours": hours * self.chips}
    return found


def make(config, recipe: str, topology: str, vocab: int, early: bool = False) -> Plan:
  """Compiles a recipe's step for a topology, and reads the program.

  Args:
    early: code is not waited for (`compiled.compile_step`).

  Raises:
    ValueError: the topology is unknown; the recipe cannot lie on it so.
  """
  machine = find(topology)
  devices = machine.devices or stand_in(machine)
  step = steps.build(config, vocab, devices)
  most = machine.chip.hbm_bytes if early else 0
  program = compiled.compile_step(step.run, step.state, step.batch, step.mesh, early=most)
  return of(config, recipe, machine, step, program)


def of(config, recipe: str, machine: Topology, step: steps.Step, program) -> Plan:
  """The plan of a step that is compiled."""
  chips, per_chip = machine.chips, step.mesh.size / machine.chips
  found = exchanges(program.collectives, machine, step.mesh)
  hardware, model = (f(step) / chips for f in (steps.hardware_flops, steps.model_flops))
  hbm = per_chip * program.traffic.hbm
  memory = _per_chip(program.memory, per_chip)
  capacity = int(machine.chip.hbm_bytes)
  fits = not program.refusal and memory.needs <= capacity
  dense, table = steps.sizes(step.state)
  plan = Plan(
    recipe=recipe,
    topology=machine.name,
    chips=chips,
    mesh=dict(step.mesh.shape),
    estimate="" if machine.devices else f"compiled for {chips} TPU chips",
    dense=dense,
    table=table,
    tokens=step.tokens,
    memory=memory,
    capacity=capacity,
    fits=fits,
    refusal=program.refusal,
    model_flops=model,
    hardware_flops=hardware,
    counted_flops=program.counted_flops * per_chip,
    hbm_bytes=hbm,
    host_bytes=per_chip * program.traffic.host,
    exchanges=found,
    unknown_loops=sum(not one.known for one in program.collectives),
    roofline=roofline(machine, hardware, hbm, found),
    seconds=program.seconds,
    peak_flops=machine.chip.peak_flops,
  )
  return dataclasses.replace(plan, advice=advice(plan, config))


def _per_chip(memory: compiled.Memory, devices: float) -> compiled.Memory:
  parts = {name: int(n * devices) for name, n in memory.parts.items()}
  needs, host = int(memory.needs * devices), int(memory.host * devices)
  return dataclasses.replace(memory, parts=parts, needs=needs, host=host)
