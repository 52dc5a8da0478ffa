"""What the code tells of every memory: classes, docstrings, the rows that the laws run on, golden
arrays."""

import ast
import dataclasses
import inspect
import math
import pathlib
import re
import sys
from collections.abc import Callable

import jax
from flax import nnx

from docs.hooks.sizes import SIZES, TOKENS, Size, inputs
from experiments import flops
from memjax.core import Memory, state_bytes
from memjax.testing import LAWS
from tests.registry import Row, public_memories, rows

ROOT = pathlib.Path(__file__).parents[2]
FAMILIES = (
  "slots",
  "parametric",
  "recurrent",
  "episodic",
  "associative",
  "cache",
  "bank",
  "transformer",
)
DOI = re.compile(r"\bdoi (10\.\S+\w)")
PAPER = re.compile(r"\barXiv (\d{4}\.\d{4,5})")
CODE = re.compile(
  r"(?<![\w/.])(?:github\.com/)?([A-Za-z][\w-]*/[A-Za-z][\w.-]*\w)"
  r"(?: at ([0-9a-f]{7}))?(?=[\s,;:)`])"
)


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the table says of a memory.

  Attributes:
    name: `slots.LM2`.   title, number: of its paper, if it names one; an arXiv id, or a doi.
    place: where it is attached.
    made: arguments that its numbers are for.
    parameters: how many.   state: bytes a row.   flops: of a token, forward.
    laws: those asked of it by the tests.   exempt: `{"law" or "law:part": (row, reason)}`.
    faithful: what it was compared with.
  """

  name: str
  title: str
  number: str
  place: str
  made: str
  parameters: int
  state: int
  flops: float
  laws: tuple[str, ...]
  exempt: dict[str, tuple[str, str]]
  faithful: str


def entries() -> list[Entry]:
  """One for every public memory, by family and name."""
  by_class: dict[type, list[Row]] = {}
  for row in rows():
    by_class.setdefault(type(_abstract(row.make)), []).append(row)
  titles = {}
  for cls in public_memories():
    title, number = paper(cls)
    if title and number:
      titles[number] = title
  ordered = sorted(public_memories(), key=lambda c: (_family(c), c.__name__.lower()))
  return [entry(cls, by_class[cls], titles) for cls in ordered]


def _family(cls: type) -> tuple[int, str]:
  name = cls.__module__.split(".")[1]
  return (FAMILIES.index(name) if name in FAMILIES else -1, name)


def _abstract(make: Callable) -> Memory:
  return jax.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


def entry(cls: type, found: list[Row], titles: dict[str, str]) -> Entry:
  title, number = paper(cls)
  memory, x, extras, made = _sample(cls, found[0])
  y = jax.eval_shape(lambda m, x: _call(m, x, extras)[0], memory, x)
  laws = tuple(law for law in LAWS if _asked(law, found))
  return Entry(
    name=f"{cls.__module__.split('.')[1]}.{cls.__name__}",
    title=title or titles.get(number, ""),
    number=number,
    place=_place(memory, x, y),
    made=made,
    parameters=sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.state(memory, nnx.Param))),
    state=state_bytes(_state(memory)),
    flops=flops.count(lambda m, x: _call(m, x, extras), memory, x) / x.shape[1],
    laws=laws,
    exempt={law: (row.name, reason) for row in found for law, reason in row.exempt.items()},
    faithful=faithful(cls),
  )


def _call(memory, x, extras):
  context = extras(1, x.shape[1]) if extras else None
  return memory(x, memory.init_state(1), context=context)


def _sample(cls: type, row: Row):
  """The memory, one row of input, its context, and the arguments it was made with, as text."""
  size = SIZES.get(cls.__name__)
  if size is None and not _required(cls):
    size = Size()
  if size is not None:
    memory = _abstract(lambda rngs: cls(*size.args, **size.options, rngs=rngs))
    tokens = math.ceil(TOKENS / memory.granularity) * memory.granularity
    return memory, inputs(size, tokens), size.extras, str(size)
  memory = _abstract(row.make)
  tokens = row.length or max(8, 4 * memory.granularity)
  make = row.inputs or (lambda key, batch, length: jax.numpy.zeros((batch, length, row.dim)))
  x = jax.eval_shape(lambda: make(jax.random.key(0), 1, tokens))
  return memory, x, row.extras, f"as `{row.name}` in `tests/registry`"


def _required(cls: type) -> list[str]:
  """Arguments without a default, but the width."""
  found = list(inspect.signature(cls.__init__).parameters.values())[2:]
  return [p.name for p in found if p.default is p.empty and p.name != "rngs"]


def _asked(law: str, found: list[Row]) -> bool:
  """Whether the tests ask a law of any row."""
  if law == "implementations":
    return any(row.implementations for row in found)
  if law == "remembers" and not jax.tree.leaves(_state(_abstract(found[0].make))):
    return False
  return any(law not in row.exempt for row in found)


def _state(memory: Memory):
  """Of one row, abstract."""
  return jax.eval_shape(lambda m: m.init_state(1), memory)


def _place(memory: Memory, x, y) -> str:
  """Where it is attached, as its class shows."""
  kind = type(memory)
  around = [
    name
    for name, p in inspect.signature(kind.__init__).parameters.items()
    if "Memory]" in str(p.annotation) or "PMI]" in str(p.annotation)
  ]
  if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
    where = "a model over ids" if x.ndim == 2 else "over items of ids"
  elif y.shape != x.shape:
    where = "a model's top"
  else:
    where = "layer" if memory.residual else "layer, replaces x"
  parts = ["store: `write`, `read`"] if hasattr(kind, "write") and hasattr(kind, "read") else []
  parts += [where] if not around or where == "a model over ids" else []
  parts += [f"around {', '.join(f'`{name}`' for name in around)}"] if around else []
  parts += ["by segments"] if memory.granularity > 1 else []
  return "; ".join(parts + ([] if memory.causal else ["sees both ways"]))


def paper(cls: type) -> tuple[str, str]:
  """Title and arXiv id (or doi) that its module's docstring names, or else its own; "" for what
  there is none of."""
  for doc in (sys.modules[cls.__module__].__doc__, cls.__doc__):
    text = _flat(doc)
    found, quoted = PAPER.search(text), re.search(r'"([A-Z][^"]+)"', text)
    if found:
      named = quoted and quoted.start() < found.start()
      return quoted[1].rstrip(",") if named else "", found[1]
    if quoted and (doi := DOI.search(text)):
      return quoted[1].rstrip(","), doi[1]
  return "", ""


def faithful(cls: type) -> str:
  """What it was compared with: golden arrays, code that its docstring names, or equations alone."""
  stem = cls.__module__.split(".")[-1]
  script = ROOT / "tests" / "golden" / f"{stem}.py"
  said = _code(_flat(sys.modules[cls.__module__].__doc__))
  if script.with_suffix(".npz").exists():
    text = _flat((ast.get_docstring(ast.parse(script.read_text())) or "").partition("\n\n")[0])
    return (
      f"[golden arrays](../{script.relative_to(ROOT)}) of {_code(text) or said or 'the equations'}"
    )
  return f"its equations, and {said}" if said else "its equations"


def _code(text: str) -> str:
  """A repository that a text names."""
  match = CODE.search(text)
  if not match:
    return ""
  return f"[{match[1]}](https://github.com/{match[1]})" + (f" at {match[2]}" if match[2] else "")


def _flat(text: str | None) -> str:
  """On one line, words that a line's end has cut at a hyphen whole."""
  return " ".join(re.sub(r"-\n\s*(?=[A-Z])", "-", inspect.cleandoc(text or "")).split())
