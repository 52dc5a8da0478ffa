"""What devices exchange in a compiled program."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from memjax.testing.hlo import Instruction, Program, Visit, arrays, parse, size

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices, as the program of each device has it.

  Attributes:
    kind: one of `KINDS`.
    held: bytes that a device holds after it.
    group_size: devices that exchange with each other; of a permute, those on a ring or chain.
    axes: mesh axes along which they lie; None where no mesh was given, or no axes give the groups.
    count: how often it runs.
    known: False where a loop around it has a trip count that cannot be read: it counts once.
    shift: of a permute, by how many places of the group's order it moves; negative: back.
  """

  kind: str
  held: int
  group_size: int
  axes: tuple[str, ...] | None
  count: int
  known: bool = True
  shift: int = 0

  @property
  def bytes(self) -> int:
    """What one device sends in one run, by the algorithm that sends least: around a ring."""
    others = self.group_size - 1
    if self.kind == "collective-permute":
      return self.held
    if self.kind == "reduce-scatter":  # of a sum of group_size times what is held
      return self.held * others
    ways = 2 if self.kind == "all-reduce" else 1
    return ways * self.held * others // self.group_size

  @property
  def total(self) -> int:
    """What one device sends in all runs."""
    return self.bytes * self.count


def collectives(text: str, mesh: Mapping[str, int] | None = None) -> list[Collective]:
  """All exchanges in a program, in its order.

  Asynchronous ones count once, and a reduction whose result is cut at once (a TPU's form of it)
  is a reduce-scatter.

  Args:
    text: `compiled.as_text()`.
    mesh: sizes of the mesh's axes by name, in order (`mesh.shape`): names the axes.
  """
  return of_program(parse(text), mesh)


def of_program(program: Program, mesh: Mapping[str, int] | None = None) -> list[Collective]:
  """`collectives` of a program that is already parsed."""
  return [_collective(program, visit, mesh) for visit in program.visits() if _counts(visit)]


def _kind(one: Instruction) -> str | None:
  kind = one.opcode.removesuffix("-start")
  return kind if kind in KINDS else None


def _counts(visit: Visit) -> bool:
  """Whether it starts an exchange. A TPU repeats an asynchronous one in the fusions that go on
  meanwhile, and in the one that ends it: these have a flag, the first has none."""
  if _kind(visit.instruction) is None:
    return False
  flag = re.search(r'"flag_start":"(-?\d+)"', visit.instruction.attributes)
  return flag is None or int(flag.group(1)) < 0


def _collective(program: Program, visit: Visit, mesh) -> Collective:
  one = visit.instruction
  kind, held = _kind(one) or "", _held(one)
  groups = _groups(program, one)
  length = len(groups[0])
  if kind == "all-reduce" and visit.fused and visit.computation.startswith("all-reduce-scatter"):
    kind, held = "reduce-scatter", held // length
  axes = None if mesh is None else _axes(groups, mesh)
  shift = _shift(groups[0]) if kind == "collective-permute" else 0
  return Collective(kind, held, length, axes, int(visit.times), visit.known, shift)


def _shift(chain: tuple[int, ...]) -> int:
  """By how many places a cycle or chain goes on from its first device."""
  if len(chain) < 2:
    return 0
  order, n = sorted(chain), len(chain)
  ahead = (order.index(chain[1]) - order.index(chain[0])) % n
  return ahead if ahead <= n // 2 else ahead - n


def _held(one: Instruction) -> int:
  """Bytes of the result; the start of an asynchronous one returns its operand before it."""
  if one.opcode in ("all-gather-start", "collective-permute-start"):
    found = [array for array in arrays(one.type) if array[1]]  # without the flags
    return sum(map(size, found[len(found) // 2 :]))
  return one.bytes


def _groups(program: Program, one: Instruction) -> list[tuple[int, ...]]:
  """The groups of devices; of a permute, its cycles and chains."""
  text = one.attributes
  pairs = re.search(r"source_target_pairs=\{(.*?)\}(?:,\s|$)", text)
  if pairs:
    return _chains({a: b for a, b in _lists(pairs.group(1))})
  groups = re.search(
    r"replica_groups=(?:\{((?:\{[\d,]*\},?)*)\}|\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    r"|mesh\[([^\]]*)\]\s*\{([^}]*)\})",
    text,
  )
  everyone = [tuple(range(program.devices))]
  if groups is None:
    return everyone
  listed, shape, reshaped, turned, sizes, names = groups.groups()
  if shape:  # devices in order, as an array, turned and cut
    devices = np.arange(math.prod(_numbers(reshaped))).reshape(_numbers(reshaped))
    devices = devices.transpose(_numbers(turned)) if turned else devices
    return [tuple(map(int, row)) for row in devices.reshape(_numbers(shape))]
  if sizes:
    found = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    return _along(found, tuple(re.findall(r"'(\w+)'", names)))
  return [tuple(group) for group in _lists(listed)] or everyone


def _chains(pairs: dict[int, int]) -> list[tuple[int, ...]]:
  starts = [a for a in pairs if a not in set(pairs.values())] + sorted(pairs)
  seen: set[int] = set()
  chains = []
  for start in starts:
    chain, at = [], start
    while at not in seen:
      seen.add(at)
      chain.append(at)
      at = pairs.get(at, start)
    if chain:
      chains.append(tuple(chain))
  return chains


def _along(mesh: Mapping[str, int], axes: tuple[str, ...]) -> list[tuple[int, ...]]:
  """Groups of devices of a mesh that lie along some of its axes."""
  names = list(mesh)
  devices = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
  rest = [names.index(name) for name in names if name not in axes]
  devices = devices.transpose(rest + [names.index(name) for name in axes])
  return [tuple(map(int, row)) for row in devices.reshape(-1, math.prod(mesh[n] for n in axes))]


def _axes(groups: list[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...] | None:
  """The fewest mesh axes that hold all members of each group, where these fill them."""
  sizes = tuple(mesh.values())
  if max(map(max, groups)) >= math.prod(sizes):
    return None
  moving: set[int] = set()
  for group in groups:
    places = np.stack(np.unravel_index(group, sizes))
    moving |= {axis for axis in range(len(sizes)) if len(set(places[axis])) > 1}
  names = tuple(name for axis, name in enumerate(mesh) if axis in moving)
  whole = {frozenset(group) for group in _along(mesh, names)}
  return names if all(frozenset(group) in whole for group in groups) else None


def _lists(text: str) -> list[list[int]]:
  return [_numbers(part) for part in re.findall(r"\{([\d,]*)\}", text)]


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",") if n]
