"""Runs the code cells of a notebook, without Jupyter; what they draw is drawn and kept.

MEMJAX_FAST=1 python -m tests.colab.notebook colab/4_sharded_table.ipynb
"""

import ast
import io
import json
import pathlib
import sys
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def sources(path: pathlib.Path, kind: str = "code") -> list[str]:
  """Of a notebook's cells of one kind."""
  found = json.loads(path.read_text())["cells"]
  return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def run(path: pathlib.Path) -> tuple[dict[str, Any], list[Figure]]:
  """Runs all code cells in order, in one namespace; returns it and the figures."""
  namespace: dict[str, Any] = {"__name__": "__main__"}
  figures, show = [], plt.show
  plt.show = lambda: None  # Agg would warn that it cannot
  try:
    for index, source in enumerate(sources(path)):
      value = _cell(source, f"{path.name}, code cell {index}", namespace)
      here = [value] if isinstance(value, Figure) else map(plt.figure, plt.get_fignums())
      for figure in here:
        figure.savefig(io.BytesIO(), dpi=30)
        figures.append(figure)
      plt.close("all")
  finally:
    plt.show = show
  return namespace, figures


def _cell(source: str, name: str, namespace: dict[str, Any]) -> Any:
  """Runs a cell; the value of its last line, if that is an expression."""
  *body, last = ast.parse(source).body
  if not isinstance(last, ast.Expr):
    exec(compile(ast.Module([*body, last], []), name, "exec"), namespace)
    return None
  exec(compile(ast.Module(body, []), name, "exec"), namespace)
  return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def empty(figure: Figure) -> bool:
  """Whether one of its axes has nothing in it."""
  return not all(a.lines or a.images or a.patches or a.collections for a in figure.axes)


if __name__ == "__main__":
  made, drawn = run(pathlib.Path(sys.argv[1]))
  print(json.dumps({"figures": len(drawn), "empty": sum(map(empty, drawn))}))
