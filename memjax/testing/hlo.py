"""Compiled programs as text (HLO), read back: instructions, and how often each one runs.

    program = parse(compiled.as_text())
    for visit in program.visits(): visit.instruction, visit.times, visit.known

Loops run their trip count: the one that the compiler notes, or else start, step and bound of the
counter, read from the program. Each branch counts once, or so often as `idle` says where another
does nothing. What a fusion calls counts as often as the fusion.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

BYTES = {
  "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2,
  "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
  "c64": 8, "c128": 16, "token": 0, "opaque": 0,
}  # fmt: skip
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]")
_CALLED = re.compile(
  r"(?:calls|branch_computations|true_computation|false_computation|called_computations)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)

Array = tuple[str, tuple[int, ...]]


def arrays(text: str) -> list[Array]:
  """(dtype, sizes) of every array named in a piece of HLO."""
  return [
    (dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _ARRAY.findall(text)
  ]


def size(array: Array) -> int:
  """Bytes of (dtype, sizes)."""
  return BYTES[array[0]] * math.prod(array[1])


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: without %.   type: of the result, as written.   opcode: such as "all-gather-start".
    operands: names.   attributes: the rest of the line.   root: the computation returns it.
  """

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  root: bool

  @functools.cached_property
  def bytes(self) -> int:
    """Of the result, all parts of a tuple together."""
    return sum(map(size, arrays(self.type)))

  def attribute(self, name: str) -> str | None:
    """A computation's name or a number after `name=`."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
    return found.group(1) if found else None

  def called(self) -> list[str]:
    """Computations that run as part of it; a loop's are not among them, nor a reduction's."""
    if self.opcode in ("async-update", "async-done"):
      return []
    names = [n for part in _CALLED.findall(self.attributes) for n in re.findall(r"[\w.\-]+", part)]
    if self.opcode == "call":
      names += [target] if (target := self.attribute("to_apply")) else []
    return names


@dataclasses.dataclass(frozen=True)
class Visit:
  """An instruction and how often it runs.

  Attributes:
    times: with the trips of all loops around it.
    known: False where a loop around it has a trip count that cannot be read; it counts once.
    computation: where it stands.   fused: inside of what a fusion or an async start calls.
  """

  instruction: Instruction
  times: float
  known: bool
  computation: str
  fused: bool


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name.

  Attributes:
    entry: name of the first.   devices: over which the program is partitioned.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str
  devices: int

  def visits(self, idle: float = 1) -> Iterator[Visit]:
    """All instructions that run, from the entry on.

    Args:
      idle: how often a branch is taken where another one does nothing.
    """
    yield from self._visits(self.entry, 1, True, False, (), idle)

  def _visits(
    self, name: str, times: float, known: bool, fused: bool, state: Sequence[int | None],
    idle: float,
  ) -> Iterator[Visit]:  # fmt: skip
    """Args: state: integers that stand in the tuple of the computation's parameter, or None."""
    for one in self.computations[name].values():
      yield Visit(one, times, known, name, fused)
      if one.opcode == "while":
        inner, body = self._tuple(name, one.operands[0], state), one.attribute("body") or ""
        trips = self._trips(one, inner)
        turns, sure = times * (1 if trips is None else trips), known and trips is not None
        yield from self._visits(body, turns, sure, fused, self._kept(body, inner), idle)
      inside = fused or one.opcode == "fusion" or one.opcode.startswith("async")
      rests = one.opcode == "conditional" and any(map(self._does_nothing, one.called()))
      for called in one.called():
        yield from self._visits(called, times * (idle if rests else 1), known, inside, (), idle)

  def _does_nothing(self, computation: str) -> bool:
    nothing = ("parameter", "tuple", "get-tuple-element", "copy", "bitcast", "constant")
    return all(one.opcode in nothing for one in self.computations[computation].values())

  def root(self, computation: str) -> Instruction:
    """What a computation returns."""
    return next(one for one in self.computations[computation].values() if one.root)

  def _trips(self, loop: Instruction, state: Sequence[int | None]) -> int | None:
    noted = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if noted:
      return int(noted.group(1))
    condition, body = loop.attribute("condition") or "", loop.attribute("body") or ""
    test = self._plain(self.root(condition))
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
      return None
    place = self._element(condition, test.operands[0])
    bound = self._integer(condition, test.operands[1], state)
    if place is None or bound is None or place >= len(state) or state[place] is None:
      return None
    step = self._step(body, place, state)
    return max(0, -(-(bound - (state[place] or 0)) // step)) if step else None

  def _step(self, body: str, place: int, state) -> int | None:
    """What a turn of a loop adds to its counter, which stands at `place` of its state."""
    root, lines = self.root(body), self.computations[body]
    if root.opcode != "tuple":
      return None
    add = self._plain(lines[self._source(body, root.operands[place])])
    if add.opcode != "add":
      return None
    own = [i for i, name in enumerate(add.operands) if self._element(body, name) == place]
    return self._integer(body, add.operands[1 - own[0]], state) if len(own) == 1 else None

  def _plain(self, one: Instruction) -> Instruction:
    """What a fusion of a single instruction (a CPU's) does, with the fusion's operands."""
    if one.opcode != "fusion":
      return one
    inner = self.computations[one.called()[0]]
    root = self.root(one.called()[0])
    given = [inner[name] for name in root.operands]
    if any(each.opcode != "parameter" for each in given):
      return one
    operands = tuple(one.operands[int(each.arguments)] for each in given)
    return dataclasses.replace(root, operands=operands)

  def _tuple(self, computation: str, name: str, state) -> list[int | None]:
    one = self.computations[computation][name]
    if one.opcode != "tuple":
      return []
    return [self._integer(computation, operand, state) for operand in one.operands]

  def _kept(self, body: str, state: list[int | None]) -> list[int | None]:
    """The parts of a loop's state that every turn hands on unchanged."""
    root = self.root(body)
    if root.opcode != "tuple":
      return []
    same = [self._element(body, name) == place for place, name in enumerate(root.operands)]
    return [value if fixed else None for value, fixed in zip(state, same, strict=False)]

  def _source(self, computation: str, name: str) -> str:
    """Where a value comes from that was only copied."""
    lines = self.computations[computation]
    copies = ("copy", "copy-done", "copy-start", "bitcast", "convert")
    while lines[name].opcode in copies and lines[name].operands:
      name = lines[name].operands[0]
    return name

  def _element(self, computation: str, name: str) -> int | None:
    """Which part of the parameter's tuple a value is."""
    one = self.computations[computation][self._source(computation, name)]
    if one.opcode != "get-tuple-element":
      return None
    of = self.computations[computation][one.operands[0]]
    return int(one.attribute("index") or 0) if of.opcode == "parameter" else None

  def _integer(self, computation: str, name: str, state) -> int | None:
    one = self.computations[computation][self._source(computation, name)]
    if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments):
      return int(one.arguments)
    place = self._element(computation, one.name)
    return state[place] if place is not None and place < len(state) else None


def parse(text: str) -> Program:
  """The program that `compiled.as_text()` shows.

  Raises:
    ValueError: it has no entry.
  """
  computations, entry, lines = {}, None, {}
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      lines = computations[header.group(2)] = {}
      entry = header.group(2) if header.group(1) else entry
    elif match := _LINE.match(line):
      one = _instruction(match, line)
      if one is not None:
        lines[one.name] = one
  if entry is None:
    raise ValueError("this is no compiled HLO program: no computation is marked ENTRY")
  devices = re.search(r"num_partitions=(\d+)", text)
  return Program(computations, entry, int(devices.group(1)) if devices else 1)


def _instruction(match: re.Match, line: str) -> Instruction | None:
  start = match.end()
  end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
  opcode = _OPCODE.match(line, end)
  if opcode is None:
    return None
  close = _closing(line, opcode.end() - 1)
  arguments = line[opcode.end() : close - 1]
  operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
  return Instruction(
    match.group(2), line[start:end], opcode.group(1), operands, arguments, line[close:],
    bool(match.group(1)),
  )  # fmt: skip


def _closing(line: str, start: int) -> int:
  """After the bracket that closes the one at `start`."""
  depth = 0
  for place in range(start, len(line)):
    if line[place] == "(":
      depth += 1
    elif line[place] == ")":
      depth -= 1
      if depth == 0:
        return place + 1
  return len(line)
