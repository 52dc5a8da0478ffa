"""Every public memory, once or in several settings, at tiny sizes: the laws run on each row.

A family's rows stand in `tests/registry/<family>.py`. Keep them tiny: a row has a few CPU seconds.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

import memjax
from memjax.core import Context, Memory
from memjax.testing.task import Task

NOT_MEMORIES = {"data", "tasks", "testing", "training"}  # parts of memjax that define none


@dataclasses.dataclass(frozen=True)
class Row:
  """One memory in one setting.

  Attributes:
    name: unique; letters, digits and `-` (it is the test's id): "ntm-lstm".
    make: called as `make(rngs=nnx.Rngs)`, returns the memory, at tiny sizes (even ones let the law
      `sharding` cut them): `lambda rngs: NTM(4, slots=4, width=4, rngs=rngs)`.
    dim: width D of x.
    batch: rows of x; 2 is enough, a stack of L layers also gets batch L.
    length: tokens of x; an even number of segments, at least 4; None: 8 tokens or 4 segments. A
      memory with a capacity needs room for so many.
    extras: `(batch, length) -> Context` for a memory that reads `context`; always the same, and
      without a key.
    inputs: `(key, batch, length) -> x` for a memory over something else than normal activations,
      such as ids.
    exempt: `{law: reason}` or `{"law:part": reason}` of what is not asked of this row; the names of
      `memjax.testing.LAWS`, and the parts that a report names.
    implementations: values for law 7, the reference first: each is put into the attribute
      `implementation` with `core.replace` (a dict names other attributes); () for one only.
    task: settings of law 10; None: the defaults. Not used for a memory without state.
    tolerance: relative tolerance of comparisons, by default the kit's; give a reason beside it.
    share: CPU seconds that laws 1-6 and 8 may take; the others may take three times as much.
    sources: files, relative to the repository's root, whose change against the main branch brings
      the row into the sample for laws 7, 9, 10 and the second Flax mode, beside those that define
      the memory's modules.
  """

  name: str
  make: Callable[..., Memory]
  dim: int
  batch: int = 2
  length: int | None = None
  extras: Callable[[int, int], Context] | None = None
  inputs: Callable[[jax.Array, int, int], jax.Array] | None = None
  exempt: Mapping[str, str] = dataclasses.field(default_factory=dict)
  implementations: tuple[Any, ...] = ()
  task: Task | None = None
  tolerance: float | None = None
  share: float = 12.0
  sources: tuple[str, ...] = ()


def rows() -> list[Row]:
  """All rows of all families, in order.

  Raises:
    ValueError: two rows have one name.
  """
  from tests.registry import parametric, recurrent, slots, transformer

  found = [row for family in (transformer, slots, parametric, recurrent) for row in family.ROWS]
  names = [row.name for row in found]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"two registry rows are called {', '.join(twice)}")
  return found


def public_memories():
  """Every concrete public `Memory` of memjax."""
  found = set()
  for part in pkgutil.iter_modules(memjax.__path__):
    if part.name in NOT_MEMORIES:
      continue
    names = [f"memjax.{part.name}"]
    names += [
      m.name for m in pkgutil.walk_packages([f"{memjax.__path__[0]}/{part.name}"], f"{names[0]}.")
    ]
    for name in names:
      found |= {
        value for _, value in inspect.getmembers(importlib.import_module(name), inspect.isclass)
      }
  own = [c for c in found if issubclass(c, Memory) and c.__module__.startswith("memjax.")]
  return {c for c in own if not inspect.isabstract(c) and not c.__name__.startswith("_")}
