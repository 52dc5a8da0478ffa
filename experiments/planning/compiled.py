"""A training step compiled for chips that are not there, and what its program says of itself."""

import dataclasses
import math
import pathlib
import re
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.planning.traffic import Traffic, traffic
from memjax.testing.collectives import Collective, of_program
from memjax.testing.hlo import Program, parse
from memjax.training import TrainState, table_names

PARTS = ("parameters", "tables", "optimiser", "table optimiser", "memory state", "other", "batch")
# How often a branch beside one that does nothing is taken: pairs of blocks under a causal mask.
IDLE = 0.5
THREAD = "compile"  # the name of that in which the compiler runs
_NO_BUFFER = ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "dynamic-update-slice")


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Attributes:
    parts: of the step's arguments by `PARTS`, the pieces that lie on one device.
    needs: all that the program holds at once: arguments as the compiler lays them out, temporaries.
    host: on the host.
    largest: (bytes, shape, where it is made) of the largest buffers beside the arguments.
  """

  parts: dict[str, int]
  needs: int
  host: int
  largest: list[tuple[int, str, str]]

  @property
  def beside(self) -> int:
    """What is held beside the parts: temporaries, and the padding of layouts."""
    return self.needs - sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step on one device.

  Attributes:
    memory: see there.   refusal: what the compiler said if it found no room, else "".
    collectives, traffic: of a step.
    counted_flops: what `cost_analysis` says, loops taken once; NaN after a refusal or `early`.
    seconds: that lowering and compiling took.   text: the program.
  """

  memory: Memory
  refusal: str
  collectives: list[Collective]
  traffic: Traffic
  counted_flops: float
  seconds: float
  text: str = dataclasses.field(repr=False, default="")


def compile_step(
  step, state: TrainState, batch: Any, mesh: Mesh, *, early: float = 0
) -> Compiled:  # fmt: skip
  """Compiles `step(state, batch)`, all abstract and with shardings, for the mesh's TPU devices.

  The program is read from what the compiler dumps: it does so also where it finds no room, and
  `compiled.as_text()` needs a jaxlib that knows all of the compiler's instructions.

  Args:
    early: bytes of a chip's memory; 0: not at all. A program that needs less than 95 % of them, or
      more than all, is read once its buffers have their places, long before the compiler is done
      with the machine's code. It goes on in a thread: end the process soon (`apart.run`).

  Raises:
    jax.errors.JaxRuntimeError: the compiler refuses it for another reason than memory.
  """
  began, refusal, flops, host = time.monotonic(), "", math.nan, 0
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    with jax.set_mesh(mesh):  # the chip that kernels are picked for
      lowered = step.lower(state, batch)
    outcome: dict[str, Any] = {}
    thread = threading.Thread(
      target=_compile, args=(lowered, folder, outcome), name=THREAD, daemon=True
    )
    thread.start()
    while thread.is_alive() and not _placed(folder, early):
      thread.join(0.2)
    if "error" in outcome:
      if "RESOURCE_EXHAUSTED" not in str(outcome["error"]):
        raise outcome["error"]
      refusal = str(outcome["error"]).splitlines()[0]
    elif "program" in outcome:
      flops = (outcome["program"].cost_analysis() or {}).get("flops", math.nan)
      said = outcome["program"].memory_analysis()
      host = said.host_temp_size_in_bytes + said.host_argument_size_in_bytes
    text, report = _dumped(folder, "after_optimizations"), _dumped(folder, "memory-usage-report")
  seconds = time.monotonic() - began
  parsed = parse(text)
  memory = Memory(argument_bytes(state, batch), _total(report), host, _largest(parsed))
  found = of_program(parsed, mesh.shape)
  return Compiled(memory, refusal, found, traffic(parsed, IDLE), flops, seconds, text)


def _compile(lowered, folder: str, found: dict[str, Any]) -> None:
  """Puts the program, or the error, into `found`."""
  options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
  try:
    found["program"] = lowered.compile(compiler_options=options)
  except Exception as error:
    found["error"] = error


def _placed(folder: str, early: float) -> bool:
  """Whether text and report are there, and all is said: of a program that just fits, or that uses
  the host's memory, the compiler has more to say."""
  last = "*after_buffer_assignment.txt"  # of what is dumped
  if not early or not list(pathlib.Path(folder).glob(last)):
    return False
  needs = _total(_dumped(folder, "memory-usage-report"))
  clear = 0 < needs < 0.95 * early or needs > early
  return clear and "S(5)" not in _dumped(folder, "after_optimizations")


def _total(report: str) -> int:
  """Bytes of device memory that a report states."""
  total = re.search(r"\(color=0\)\nTotal bytes: (\d+)", report)
  return int(total.group(1)) if total else 0


def _dumped(folder: str, what: str) -> str:
  """The text of the largest module's file whose name ends so."""
  found = pathlib.Path(folder).glob(f"*{what}.txt")
  return max(found, key=lambda path: path.stat().st_size).read_text()


def _largest(program: Program, count: int = 5) -> list[tuple[int, str, str]]:
  """The largest arrays in HBM that instructions make, each shape once."""
  found: dict[str, tuple[int, str, str]] = {}
  for visit in program.visits():
    one = visit.instruction
    if visit.fused or one.opcode in _NO_BUFFER or "S(" in one.type or one.type.startswith("("):
      continue
    shape = one.type.partition("{")[0]
    name = re.search(r'op_name="([^"]*)"', one.attributes)
    if shape not in found:
      found[shape] = (one.bytes, shape, name.group(1) if name else one.name)
  return sorted(found.values(), reverse=True)[:count]


def argument_bytes(state: TrainState, batch: Any) -> dict[str, int]:
  """Bytes of the pieces on one device by `PARTS`; an array without a sharding is whole on each."""
  tables = table_names(state.model)
  total: dict[str, int] = dict.fromkeys(PARTS, 0)

  def add(part: str, tree):
    for a in jax.tree.leaves(tree):
      total[part] += piece_bytes(a)

  for name, a in state.params.items():
    add("tables" if name in tables else "parameters", a)
  for path, a in jax.tree_util.tree_leaves_with_path(state.opt_state):
    of_table = any(getattr(entry, "key", None) in tables for entry in path)
    add("table optimiser" if of_table else "optimiser", a)
  add("memory state", state.memory)
  add("other", (state.step, state.rest, state.key, state.skipped, state.streak))
  add("batch", batch)
  return total


def piece_bytes(a) -> int:
  """Bytes of an array's piece on one device."""
  sharding = getattr(a, "sharding", None)
  shape = a.shape if sharding is None else sharding.shard_shape(a.shape)
  if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
    return 8 * math.prod(shape)
  return math.prod(shape) * a.dtype.itemsize
