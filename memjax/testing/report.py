"""Running the laws and saying what they found."""

import dataclasses
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Mapping

import jax

from memjax.testing import devices, flags, order, programs, remembers, variants
from memjax.testing.case import Case, NotApplicable
from memjax.testing.causes import CAUSES
from memjax.testing.compare import Finding
from memjax.testing.task import Task

LAWS: dict[str, Callable[[Case], list[Finding]]] = {
  "types": programs.types,
  "split": order.split,
  "reset": flags.reset,
  "padding": flags.padding,
  "causality": order.causality,
  "rows": order.rows,
  "implementations": variants.implementations,
  "compile": programs.compile,
  "sharding": devices.sharding,
  "remembers": remembers.remembers,
}
FAST = ("types", "split", "reset", "padding", "causality", "rows", "compile")


class LawError(AssertionError):
  """A memory breaks a law: which, where, by how much, and what usually causes it."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The verdict of one law.

  Attributes:
    law: its name.
    status: "passed", "failed", "exempt", "not applicable" or "not run".
    findings: what was found wrong.
    reason: why it is exempt, not applicable or not run.
    seconds: CPU time of the process.
  """

  law: str
  status: str
  findings: tuple[Finding, ...] = ()
  reason: str = ""
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Report:
  """The verdicts on one memory; `str(report)` is readable."""

  title: str
  results: tuple[Result, ...]

  @property
  def failed(self) -> tuple[Result, ...]:
    return tuple(r for r in self.results if r.status == "failed")

  @property
  def parts(self) -> set[str]:
    """What failed, as `law:part`."""
    return {f"{r.law}:{f.part}" for r in self.failed for f in r.findings}

  @property
  def seconds(self) -> float:
    return sum(r.seconds for r in self.results)

  def __str__(self) -> str:
    head = (
      f"{self.title}: {len(self.failed)} of {len(self.results)} laws broken"
      if self.failed
      else f"{self.title}: no law broken"
    )
    return "\n".join([head, *(_lines(r) for r in self.results)])


def _lines(result: Result) -> str:
  doc = (LAWS[result.law].__doc__ or "").splitlines()[0]
  if result.status != "failed":
    return f"  {result.law}: {result.status}" + (f" ({result.reason})" if result.reason else "")
  lines = [f"  {result.law}: FAILED. The law: {doc}"]
  for finding in result.findings:
    lines.append(textwrap.indent(f"{finding.part}: {finding.message}", "    "))
    cause = CAUSES.get(f"{result.law}:{finding.part}")
    if cause:
      lines.append(f"      usually: {cause}")
  return "\n".join(lines)


def report(
  make_memory: Callable, *, dim: int, batch: int = 2, length: int | None = None,
  laws: Iterable[str] = tuple(LAWS), extras: Callable | None = None, inputs: Callable | None = None,
  exempt: Mapping[str, str] | None = None, implementations: tuple = (), task: Task | None = None,
  tolerance: float | None = None, seed: int = 0,
) -> Report:  # fmt: skip
  """Runs the laws on a memory and returns their verdicts.

  Args:
    make_memory: called as `make_memory(rngs=nnx.Rngs)`, returns the memory; tiny sizes are enough.
    dim: width D of its input.
    batch: rows, at least 2; for a stack of L layers also try L.
    length: tokens of a call, an even number of segments, at least 4; None: 8 tokens or 4 segments.
    laws: their names, of `LAWS`; `FAST` leaves out those that compile or train more.
    extras: `(batch, length) -> Context`, for a memory that reads one.
    inputs: `(key, batch, length) -> x`, for a memory over ids.
    exempt: `{law: reason}`, or `{"law:part": reason}`, of what is not asked of this memory.
    implementations: for the law of that name: values of the attribute `implementation`, the
      reference first; a dict replaces other attributes.
    task: settings of the law `remembers`; None: the defaults.
    tolerance: largest relative difference of values (gradients: ten times it); None: 2e-5.
    seed: of parameters and inputs.

  Raises:
    ValueError: an unknown law, or a size that does not fit.
  """
  exempt = dict(exempt or {})
  _known(laws, exempt)
  start = time.process_time()
  with jax.default_matmul_precision("highest"):
    case = Case(
      make_memory, dim=dim, batch=batch, length=length, extras=extras, inputs=inputs,
      implementations=implementations, task=task, tolerance=tolerance, seed=seed,
    )  # fmt: skip
    results, spent = [], time.process_time() - start
    for law in LAWS:
      if law in set(laws):
        broken = any(r.law == "types" and r.status == "failed" and _fatal(r) for r in results)
        results.append(_run(law, case, exempt, broken, spent))
        spent = 0.0
  title = (
    f"{case.name} (batch {batch}, length {case.length}, dim {dim}, granularity {case.granularity})"
  )
  return Report(title, tuple(results))


def check(make_memory: Callable, **options) -> None:
  """Runs the laws on a memory, with the arguments of `report`.

  Raises:
    LawError: the memory breaks a law; the message is the report.
  """
  verdict = report(make_memory, **options)
  if verdict.failed:
    raise LawError(str(verdict))


def _known(laws, exempt) -> None:
  for name in [*laws, *(key.partition(":")[0] for key in exempt)]:
    if name not in LAWS:
      raise ValueError(f"there is no law {name!r}; the laws are {', '.join(LAWS)}")


def _fatal(result: Result) -> bool:
  return any(f.part != "dtypes" and f.part != "duplicates" for f in result.findings)


def _run(law: str, case: Case, exempt: dict, broken: bool, spent: float) -> Result:
  if law in exempt:
    return Result(law, "exempt", reason=exempt[law], seconds=spent)
  if broken:
    return Result(
      law,
      "not run",
      reason="the state or the output has no fixed type: see the law types",
      seconds=spent,
    )
  start = time.process_time()
  try:
    found = LAWS[law](case)
  except NotApplicable as error:
    return Result(
      law, "not applicable", reason=str(error), seconds=spent + time.process_time() - start
    )
  except Exception as error:  # a memory under test may raise anything
    found = [Finding("raised", _raised(error))]
  left = tuple(f for f in found if f"{law}:{f.part}" not in exempt)
  seconds = spent + time.process_time() - start
  reasons = "; ".join(
    f"{key}: {reason}" for key, reason in exempt.items() if key.startswith(f"{law}:")
  )
  return Result(law, "failed" if left else "passed", left, reason=reasons, seconds=seconds)


def _raised(error: Exception) -> str:
  """The error, and the last lines of the traceback that are not JAX's own."""
  frames = [
    f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
  ]
  places = [f"{f.filename}:{f.lineno} in {f.name}: {f.line}" for f in frames[-3:]]
  return "\n".join([f"{type(error).__name__}: {error}", *(f"  {place}" for place in places)])
