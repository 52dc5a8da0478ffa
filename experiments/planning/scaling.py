"""How a step's terms grow from 16 to 1024 chips: `python -m experiments.plan --scaling` writes
docs/plans/scaling.md.

Weak scaling: every chip has as many tokens, whatever their number. Models have the width of
`pod_memory_plus_1b` and two layers, so that a compile is short: what is exchanged of the layers
that are left out is as that of the first one.
"""

import dataclasses
from typing import Any

from experiments.configs import text
from experiments.planning import apart, plans
from experiments.planning.render import table
from experiments.planning.stored import FOLDER, GIB, versions

TOPOLOGIES = {16: "v5p:2x2x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8", 1024: "v5p:8x8x16"}
FSDP = 16  # ways that parameters are cut; the rest of the chips is on the data axis
VOCAB = 32_000
MARK = "<!-- the tables are made by the command -->\n"


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a memory's rows lie.

  Attributes:
    title: of its table.   rows: mesh axes that cut rows; columns are cut over fsdp.
    memory: of the model.   tables: how they train.   grows: rows grow with the number of chips.
  """

  title: str
  memory: str = "memory_plus"
  rows: tuple[str, ...] = ()
  tables: str = "lazy"
  grows: bool = False


LAYOUTS: tuple[Layout, ...] = (
  Layout("No memory", memory="none"),
  Layout("1024^2 rows, a copy in every group of 16 chips, dense gradient", tables="dense"),
  Layout("1024^2 rows, a copy in every group of 16 chips, trained by touched rows"),
  Layout("65,536 rows a chip, cut over all chips", rows=("data",), grows=True),
)  # fmt: skip


def recipe(layout: Layout, chips: int):
  """The recipe of a layout on so many chips."""
  config = text.get_config()
  config.update_from_flattened_dict(
    {
      "batch_size": chips, "sequence_length": 2048, "data.source": "text", "twin.train": False,
      "model.dim": 2048, "model.layers": 2, "model.heads": 16, "model.hidden": 5632,
      "model.activation": "silu", "model.gated": True,
      "model.dtype": "bfloat16", "model.table_dtype": "bfloat16",
      "model.memory": layout.memory, "model.memory_layers": (1,),
      "model.memory_keys": 1024 * round((chips // FSDP) ** 0.5 if layout.grows else 1),
      "model.memory_heads": 4, "model.memory_top_k": 32, "model.memory_query_dim": 1024,
      "optimizer.tables": layout.tables,
      "mesh.data": chips // FSDP, "mesh.fsdp": FSDP,
      "rules.rows": layout.rows, "rules.value": ("fsdp",),
    }
  )  # fmt: skip
  return config


def make(layout: Layout, chips: int) -> plans.Plan:
  """The plan of a layout on so many chips."""
  config = recipe(layout, chips)
  return apart.run(plans.make, config, layout.title, TOPOLOGIES[chips], VOCAB, True)


def rows_of(made: dict[int, plans.Plan]) -> str:
  """The table of one layout, by number of chips."""
  columns = [
    "chips", "compute ms", "HBM ms", "interconnect ms", "HBM GiB", "GiB sent a chip",
    "along fsdp", "along data", "along both",
  ]  # fmt: skip
  rows = []
  for chips, plan in made.items():
    roof = plan.roofline
    sent = {axes: 0.0 for axes in ("fsdp", "data", "both")}
    for one in plan.exchanges:
      sent[one.axes[0] if one.axes and len(one.axes) == 1 else "both"] += one.bytes
    times = (roof.compute, roof.memory, roof.interconnect)
    amounts = (plan.memory.needs, sum(sent.values()), *sent.values())
    rows.append(
      [str(chips), *(f"{1e3 * t:,.1f}" for t in times), *(f"{n / GIB:.3f}" for n in amounts)]
    )
  return table(columns, rows)


def main() -> int:
  """Writes the tables."""
  parts: list[str] = []
  for layout in LAYOUTS:
    made: dict[int, Any] = {}
    for chips in TOPOLOGIES:
      made[chips] = make(layout, chips)
      print(f"{layout.title}, {chips} chips: {made[chips].seconds:.0f} s", flush=True)
    parts.append(f"### {layout.title}\n\n{rows_of(made)}\n")
  page = FOLDER / "scaling.md"
  before, mark, _ = page.read_text().partition(MARK)
  page.write_text(f"{before}{mark}\n" + "\n".join(parts) + f"\n{versions()}.\n")
  return 0
