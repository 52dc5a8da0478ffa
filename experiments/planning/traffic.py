"""Bytes that a compiled step moves to and from a chip's memory, with all trips of its loops.

XLA's own count (`cost_analysis`) takes the body of a loop once; this one multiplies. Counted are
operands and results of what stands outside of fusions, of slices and of updates in place the piece,
of Pallas kernels their `CostEstimate`. What lies in VMEM costs nothing; what lies on the host
counts for the link to it.
"""

import dataclasses
import re
from collections.abc import Iterator

from memjax.testing.hlo import Instruction, Program, arrays, size

_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "partition-id", "replica-id", "async-update", "async-done", "opt-barrier",
}  # fmt: skip
_SPACED = re.compile(r"\w+\[[\d,]*\](?:\{[^{}]*\})?")
_VMEM, _HOST = 1, 5  # memory spaces, as layouts name them: S(1), S(5)
_PIECES = ("dynamic-slice", "slice", "gather")
_SAME = ("bitcast", "copy", "reshape", "transpose", "convert")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes of one step on one device.

  Attributes:
    hbm: read and written in device memory.   host: over the link to the host's memory.
    kernel_flops: what the estimates of its Pallas kernels add up to.
  """

  hbm: float
  host: float
  kernel_flops: float


def traffic(program: Program, idle: float = 1.0) -> Traffic:
  """The bytes of a program; `idle` as in `Program.visits`."""
  hbm = host = flops = 0.0
  for visit in program.visits(idle):
    one = visit.instruction
    if visit.fused or one.opcode in _FREE or one.opcode.endswith("-done"):
      continue
    estimate = _estimate(one)
    if estimate is not None:
      flops += visit.times * estimate[0]
      hbm += visit.times * estimate[1]
      continue
    for space, moved in _moved(program, visit.computation, one):
      hbm += visit.times * moved if space not in (_VMEM, _HOST) else 0
      host += visit.times * moved if space == _HOST else 0
  return Traffic(hbm, host, flops)


def _estimate(one: Instruction) -> tuple[float, float] | None:
  """FLOPs and bytes that a kernel states for itself."""
  found = re.search(r'"cost_estimate":\{([^}]*)\}', one.attributes)
  if one.opcode != "custom-call" or found is None:
    return None
  values = dict(re.findall(r'"(\w+)":"?(\d+)', found.group(1)))
  return float(values.get("flops", 0)), float(values.get("bytes_accessed", 0))


def _moved(program: Program, computation: str, one: Instruction) -> Iterator[tuple[int, float]]:
  """(memory space, bytes) of everything that an instruction reads and writes."""
  lines = program.computations[computation]
  operands = [lines[name] for name in one.operands if name in lines]
  if one.opcode in _PIECES:
    yield from _spaced(one)  # reads as much as it writes
    yield from _spaced(one, like=operands[:1])
    return
  if one.opcode == "dynamic-update-slice":
    yield from _spaced(operands[1])
    yield from _spaced(operands[1], like=[one])
    return
  if one.opcode == "scatter":
    for _ in range(2):
      yield from _spaced(operands[2])
    yield from _spaced(operands[1])
    return
  if one.opcode in ("copy-start", "collective-permute-start", "all-gather-start"):
    yield from _spaced(one)  # holds operand and result
    return
  inner = _body(program, one)
  if inner is None:
    yield from _spaced(one)
    for operand in operands:
      yield from _spaced(operand)
    return
  yield from _fusion(program, inner, one, operands)


def _body(program: Program, one: Instruction) -> dict[str, Instruction] | None:
  called = one.called() if one.opcode == "fusion" else []
  return program.computations[called[0]] if called else None


def _fusion(
  program: Program, inner, one: Instruction, operands: list[Instruction]
) -> Iterator[tuple[int, float]]:
  parameters = {int(i.arguments): i for i in inner.values() if i.opcode == "parameter"}
  updated: set[str] = set()
  root = next(i for i in inner.values() if i.root)
  results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
  spaces = _spaces(one.type)
  for place, result in enumerate(results):
    source = _through(inner, result)
    space = spaces[place][0] if place < len(spaces) else 0
    written = _written(program, inner, source)
    if written is not None:
      updated.add(written[0])
      yield space, written[1]
    else:
      yield space, spaces[place][1] if place < len(spaces) else result.bytes
  for place, operand in enumerate(operands):
    parameter = parameters.get(place)
    if parameter is None or parameter.name in updated:
      continue
    pieces = _read_in_pieces(program, inner, parameter)
    if pieces is None:
      yield from _spaced(operand)
    else:
      yield _spaces(operand.type)[0][0] if _spaces(operand.type) else 0, pieces


def _written(program: Program, inner, one: Instruction) -> tuple[str, float] | None:
  """The array that an instruction of a fusion changes in place, and the bytes put there."""
  if one.opcode in ("dynamic-update-slice", "scatter"):
    pieces = inner[one.operands[1 if one.opcode == "dynamic-update-slice" else 2]]
    return _through(inner, inner[one.operands[0]]).name, pieces.bytes
  nested = _body(program, one)
  if nested is None:
    return None
  root = next(i for i in nested.values() if i.root)
  found = _written(program, nested, _through(nested, root))
  if found is None or nested[found[0]].opcode != "parameter":
    return None
  operand = one.operands[int(nested[found[0]].arguments)]
  return _through(inner, inner[operand]).name, found[1]


def _read_in_pieces(program: Program, inner, parameter: Instruction) -> float | None:
  """Bytes of the slices of a parameter, also in fusions inside, where nothing else is read."""
  names, total, found = {parameter.name}, 0.0, False
  for one in inner.values():
    if not names & set(one.operands):
      continue
    if one.opcode in _SAME:
      names.add(one.name)
      continue
    pieces: float | None = None
    if one.opcode in _PIECES and one.operands[0] in names:
      pieces = one.bytes
    elif one.opcode == "fusion":
      pieces = _inside(program, one, names)
    if pieces is None:
      return None
    total, found = total + pieces, True
  return total if found else None


def _inside(program: Program, one: Instruction, names: set[str]) -> float | None:
  inner = _body(program, one) or {}
  parameters = {int(i.arguments): i for i in inner.values() if i.opcode == "parameter"}
  places = [place for place, name in enumerate(one.operands) if name in names]
  read = [_read_in_pieces(program, inner, parameters[place]) for place in places]
  return None if None in read else sum(filter(None, read))


def _through(inner, one: Instruction) -> Instruction:
  while one.opcode in _SAME and one.operands:
    one = inner[one.operands[0]]
  return one


def _spaced(one: Instruction, like: list[Instruction] | None = None) -> Iterator[tuple[int, float]]:
  """(space, bytes) of an instruction's result; with `like` its bytes in the space of another."""
  spaces = _spaces(one.type)
  if like is not None:
    other = _spaces(like[0].type) if like else []
    yield other[0][0] if other else 0, sum(moved for _, moved in spaces)
    return
  yield from spaces


def _spaces(type_: str) -> list[tuple[int, float]]:
  found = []
  for text in _SPACED.findall(type_):
    space = re.search(r"S\((\d+)\)", text)
    found.append((int(space.group(1)) if space else 0, float(sum(map(size, arrays(text))))))
  return found
