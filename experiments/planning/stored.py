"""The plans in docs/plans, of the recipes of pods: `python -m experiments.plan --all`."""

import argparse
import dataclasses
import importlib.metadata
import pathlib
import runpy
from typing import Any

import jax

from experiments.planning import apart, plans
from experiments.planning.render import render, table

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "docs/plans"
MARK = "<!-- the table is made by the command -->\n"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Stored:
  """A plan that is kept.

  Attributes:
    name: of its file.   recipe: in experiments/configs.   topology: if not the recipe's.
    changes: fields of the recipe, by dotted name.
  """

  name: str
  recipe: str
  topology: str = ""
  changes: tuple[tuple[str, Any], ...] = ()

  def config(self):
    """The recipe with its changes."""
    config = runpy.run_path(str(ROOT / self.path))["get_config"]()
    config.update_from_flattened_dict(dict(self.changes))
    return config

  @property
  def path(self) -> str:
    """Of the recipe, from the repository's root."""
    return f"experiments/configs/{self.recipe}.py"

  def command(self) -> str:
    """That prints the plan."""
    words = [f"python -m experiments.plan --config={self.path}"]
    words += [f"--topology={self.topology}"] if self.topology else []
    changes = (f"--config.{name}={value}" for name, value in self.changes)
    return " ".join([*words, *(f'"{word}"' if "'" in word else word for word in changes)])


STORED: tuple[Stored, ...] = (
  Stored("memory_plus_1b_v5e_256", "pod_memory_plus_1b"),
  Stored("memory_plus_8b_v5p_512", "pod_memory_plus_8b"),
  Stored(
    "memory_plus_8b_v6e_256",
    "pod_memory_plus_8b",
    "v6e:16x16",
    (("rules.embed", ("fsdp", "data")),),  # parameters cut over all chips: a third of the memory
  ),
  Stored("rmt_1m", "pod_rmt_1m"),
  Stored("rmt_256k", "pod_rmt_1m", changes=(("sequence_length", 2**18),)),
  Stored("long_7b", "pod_long_7b"),
)


def make(one: Stored) -> tuple[plans.Plan, str]:
  """The plan, and the text of its file."""
  config = one.config()
  topology = one.topology or config.plan.topology
  plan = apart.run(plans.make, config, one.path, topology, config.plan.vocab, True)
  text = f"# {one.name}\n\n```sh\n{one.command()}\n```\n\n{versions()}.\n\n"
  return plan, text + render(plan, config.plan.tokens)


def versions() -> str:
  """Of what compiles."""
  return f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"


COLUMNS = [
  "plan", "chips", "mesh", "tokens a step", "GiB a chip", "compute ms", "HBM ms",
  "interconnect ms", "utilisation", "tokens/s a chip",
]  # fmt: skip


def row(name: str, plan: plans.Plan) -> list[str]:
  """A plan's row of the table of all."""
  roof = plan.roofline
  mesh = " ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
  times = (roof.compute, roof.memory, roof.interconnect)
  return [
    f"[{name}]({name}.md)", plan.topology, mesh, f"{plan.tokens:,}",
    f"{plan.memory.needs / GIB:.1f} of {plan.capacity / GIB:.0f}",
    *(f"{1e3 * t:,.0f}" for t in times),
    f"{plan.serial_utilisation:.0%} to {plan.utilisation:.0%}",
    f"{plan.tokens_per_second / plan.chips:,.0f}",
  ]  # fmt: skip


def put_row(page: str, new: list[str]) -> str:
  """The page with this row in its table, in the order of `STORED`."""
  before, mark, after = page.partition(MARK)
  lines = [line for line in after.splitlines() if line.startswith("| [")]
  rows = {
    cells[0]: cells for cells in ([c.strip() for c in line[1:-1].split("|")] for line in lines)
  }
  rows[new[0]] = new
  order = [f"[{one.name}]({one.name}.md)" for one in STORED]
  return (
    before + mark + "\n" + table(COLUMNS, [rows[name] for name in order if name in rows]) + "\n"
  )


def main(arguments: list[str]) -> int:
  """Writes the plans and their rows in the table; 1 if one does not fit."""
  parser = argparse.ArgumentParser(prog="python -m experiments.plan --all")
  parser.add_argument("--only", nargs="+", choices=[one.name for one in STORED])
  options = parser.parse_args(arguments)
  status, readme = 0, FOLDER / "README.md"
  for one in STORED:
    if options.only and one.name not in options.only:
      continue
    plan, text = make(one)
    (FOLDER / f"{one.name}.md").write_text(text)
    readme.write_text(put_row(readme.read_text(), row(one.name, plan)))
    print(f"{one.name}: {_verdict(plan)}, compiled in {plan.seconds:.0f} s", flush=True)
    status |= not plan.fits
  return status


def _verdict(plan: plans.Plan) -> str:
  return "fits" if plan.fits else "DOES NOT FIT"
