"""The page of all memories."""

import pathlib
from collections.abc import Callable, Sequence

from docs.hooks import docstrings
from docs.hooks.memories import Entry, entries
from docs.hooks.sizes import TOKENS
from memjax.testing import LAWS


def markdown(link: Callable[[str], str]) -> str:
  """The page.

  Args:
    link: what becomes of a memory's name in backticks.
  """
  found = entries()
  heads = ("memory", "paper", "place", "parameters", "state, a row", "FLOPs, a token", "laws")
  table = [_row((*heads, "compared with", "made as")), "|---|---|---|---:|---:|---:|---|---|---|"]
  table += [_row(_cells(entry, link)) for entry in found]
  reasons = [_row(("memory", "law, or part", "setting", "why")), "|---|---|---|---|"]
  reasons += [
    _row((link(f"`{e.name}`"), law, f"`{row}`", docstrings.prose(reason, lambda code: code)))
    for e in found
    for law, (row, reason) in e.exempt.items()
  ]
  return (pathlib.Path(__file__).parent / "memories.md").read_text().format(
    count=len(found), tokens=TOKENS, laws="; ".join(f"{i} {law}" for i, law in enumerate(LAWS, 1)),
    table="\n".join(table), reasons="\n".join(reasons),
  )  # fmt: skip


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _cells(entry: Entry, link) -> list[str]:
  paper = entry.title or "none"
  if entry.number:
    host = "https://doi.org/" if "/" in entry.number else "https://arxiv.org/abs/"
    paper = f"{entry.title} [{entry.number}]({host}{entry.number})".strip()
  return [
    link(f"`{entry.name}`"), paper, entry.place, _short(entry.parameters, ""),
    _short(entry.state, "B") if entry.state else "none", _short(entry.flops, ""), _numbers(entry),
    entry.faithful, entry.made,
  ]  # fmt: skip


def _numbers(entry: Entry) -> str:
  """Laws by number, ranges together, with a star where a part or a row is exempt."""
  at = [i for i, law in enumerate(LAWS, 1) if law in entry.laws]
  runs: list[list[int]] = []
  for i in at:
    if runs and runs[-1][-1] == i - 1:
      runs[-1].append(i)
    else:
      runs.append([i])
  text = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
  return text + (" \\*" if entry.exempt else "")


def _short(value: float, unit: str) -> str:
  for factor, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= factor:
      return f"{value / factor:.3g} {name}{unit}".rstrip()
  return f"{value:.0f} {unit}".rstrip()
