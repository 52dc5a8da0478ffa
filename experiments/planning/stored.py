"""The plans in docs/plans, of the recipes of pods: `python -m experiments.plan --all`."""

import argparse
import dataclasses
import pathlib
import runpy
from typing import Any

import jax

from experiments.planning import plans
from experiments.planning.render import render, table

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "docs/plans"
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
    return " ".join(words + [f"--config.{name}={value}" for name, value in self.changes])


STORED: tuple[Stored, ...] = (
  Stored("memory_plus_1b_v5e_256", "pod_memory_plus_1b"),
  Stored("memory_plus_8b_v5p_512", "pod_memory_plus_8b"),
  Stored("memory_plus_8b_v6e_256", "pod_memory_plus_8b", "v6e:16x16"),
  Stored("rmt_1m", "pod_rmt_1m"),
  Stored("long_7b", "pod_long_7b"),
)


def make(one: Stored) -> tuple[plans.Plan, str]:
  """The plan, and the text of its file."""
  config = one.config()
  topology = one.topology or config.plan.topology
  plan = plans.make(config, one.path, topology, config.plan.vocab)
  versions = f"jax {jax.__version__}, libtpu {_libtpu()}"
  text = f"# {one.name}\n\n```sh\n{one.command()}\n```\n\n{versions}.\n\n"
  return plan, text + render(plan, config.plan.tokens)


def _libtpu() -> str:
  import importlib.metadata

  return importlib.metadata.version("libtpu")


def summary(made: dict[str, plans.Plan]) -> str:
  """The table of all plans."""
  rows = []
  for name, plan in made.items():
    roof = plan.roofline
    mesh = " ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    times = (roof.compute, roof.memory, roof.interconnect)
    rows.append(
      [
        f"[{name}]({name}.md)", plan.topology, mesh, f"{plan.tokens:,}",
        f"{plan.memory.needs / GIB:.1f} of {plan.capacity / GIB:.0f}",
        *(f"{1e3 * t:,.0f}" for t in times),
        f"{plan.serial_utilisation:.0%} to {plan.utilisation:.0%}",
        f"{plan.tokens_per_second / plan.chips:,.0f}",
      ]
    )  # fmt: skip
  columns = [
    "plan", "chips", "mesh", "tokens a step", "GiB a chip", "compute ms", "HBM ms",
    "interconnect ms", "utilisation", "tokens/s a chip",
  ]  # fmt: skip
  return table(columns, rows)


def main(arguments: list[str]) -> int:
  """Writes the plans and their table; 1 if one does not fit."""
  parser = argparse.ArgumentParser(prog="python -m experiments.plan --all")
  parser.add_argument("--only", nargs="+", choices=[one.name for one in STORED])
  options = parser.parse_args(arguments)
  made = {}
  for one in STORED:
    if options.only and one.name not in options.only:
      continue
    plan, text = make(one)
    made[one.name] = plan
    (FOLDER / f"{one.name}.md").write_text(text)
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    print(f"{one.name}: {verdict}, compiled in {plan.seconds:.0f} s", flush=True)
  if not options.only:
    readme = FOLDER / "README.md"
    before, mark, _ = readme.read_text().partition("<!-- the table is made by the command -->\n")
    readme.write_text(before + mark + "\n" + summary(made) + "\n")
  return 0 if all(plan.fits for plan in made.values()) else 1
