"""The page of a comparison: what is held fixed, tables with their controls, plots; from rows that
are read back from the files."""

import json
import math
import pathlib
import statistics

from experiments.comparison import cells, figures, rows
from experiments.comparison.figures import of
from experiments.comparison.plan import Cell, given
from experiments.comparison.program import ENOUGH
from experiments.console import number_of_bytes
from experiments.reporting.charts import number
from experiments.reporting.document import document, table, text

STYLE = """
td b.v { font-weight: 600; padding: 1px 5px; border-radius: 4px;
  background: color-mix(in srgb, var(--c2) calc(var(--share) * 55%), transparent); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
td small { color: var(--soft); display: block; line-height: 1.1; }
"""
REFERENCES = ("oracle", "floor", "chance")


def write(wanted: list[Cell], workdir: pathlib.Path) -> pathlib.Path:
  """Writes `results.csv` and `report.html` of the finished cells; the page's path."""
  found, missing = [], []
  for cell in wanted:
    path = cells.folder(workdir) / f"{cell.name}.csv"
    if path.exists():
      found += rows.read(path)
    else:
      missing.append(cell)
  for cell in {cell.setup.name: cell for cell in wanted}.values():
    found += cells.references(cell)
  rows.write(workdir / "results.csv", found)
  target = workdir / "report.html"
  rows.put(target, page(wanted, found, missing, _environment(workdir)).encode())
  return target


def _environment(workdir: pathlib.Path) -> dict:
  try:
    return json.loads((workdir / "environment.json").read_text())
  except (OSError, ValueError):
    return {}


def page(wanted: list[Cell], found: list[dict], missing: list[Cell], environment: dict) -> str:
  """The page of these rows."""
  setups = {cell.setup.name: cell.setup for cell in wanted}
  sections = [_head(wanted, missing, environment), _sizes(found), _summary(setups, found)]
  sections += [_task(setup, of(found, task=name)) for name, setup in setups.items()]
  return document("Memories compared", [*sections, _fixed(wanted)], STYLE)


def _head(wanted, missing, environment) -> str:
  versions = environment.get("versions") or {}
  notes = [
    f"{len(wanted) - len(missing)} of {len(wanted)} cells",
    f"jax {versions.get('jax', '?')}",
    f"{environment.get('processors', '?')} processors",
    str(environment.get("time", ""))[:16].replace("T", " "),
  ]
  lack = ", ".join(f"{cell.memory} on {cell.setup.name}" for cell in missing)
  note = f'<div class="notes"><p>Not finished: {text(lack)}.</p></div>' if missing else ""
  return f'<h1>Memories compared</h1><p class="soft">{text(" · ".join(notes))}</p>{note}'


def _sizes(found: list[dict]) -> str:
  """What every memory costs, of the first task that it was run on."""
  lines = []
  for name in figures.models(found):
    mine = of(found, model=name)
    task = of(mine, task=mine[0]["task"])
    first, parts = task[0], {row["metric"]: row["value"] for row in task if not row["varies"]}
    seconds = sum(r["value"] for r in of(mine, metric="cpu_seconds_cell"))
    lines.append([
      text(name), number_of_bytes(first["state_bytes"]), f"{first['params_total']:,.0f}",
      f"{parts.get('params_embedding', 0):,.0f}", f"{parts.get('params_table', 0):,.0f}",
      f"{first['params_active']:,.0f}", number(first["flops_tok"]),
      number(parts.get("train_tokens_per_cpu_second", 0)), f"{seconds / 60:.1f} min",
    ])  # fmt: skip
  columns = ["memory", "state", "parameters", "of embedding", "of tables", "active a token",
             "FLOPs a token", "tokens per CPU second", "CPU time, all tasks"]  # fmt: skip
  note = (
    "State: the bytes of a sequence that cross a segment's border, at the training length; open "
    "segments are empty there. FLOPs: forward, at the training length; training takes three times "
    "as many."
  )
  return f'<h2>What each costs</h2>{table(columns, lines)}<p class="soft">{note}</p>'


def _mean(found: list[dict]) -> tuple[float, float, float] | None:
  values = [row["value"] for row in found if row["value"] is not None]
  return (statistics.fmean(values), min(values), max(values)) if values else None


def _cell(found: list[dict], zeroed: list[dict] | None = None) -> str:
  """Mean over seeds, their range where it is wide, and the mean with the memory zeroed."""
  mean = _mean(found)
  if mean is None:
    return "-"
  value, low, high = mean
  notes = f"{low:.2f}–{high:.2f}" if high - low > 0.02 else ""
  without = _mean(zeroed or [])
  notes += f" ∅ {without[0]:.2f}" if without else ""
  shown = f'<b class="v" style="--share:{value:.2f}">{value:.3f}</b>'
  return shown + (f"<small>{notes}</small>" if notes else "")


def _settings(setup, found) -> list[tuple[str, float]]:
  """What was tested, in the order of the rows; streams too."""
  return list(dict.fromkeys(
    (row["varies"], row["setting"]) for row in of(found, metric=setup.metric) if row["varies"]
  ))  # fmt: skip


def _summary(setups: dict, found: list[dict]) -> str:
  """Every memory on every task, at the first setting and the hardest that all were tested on."""
  names = list(setups)
  lines = []
  for name in [*figures.models(found), *REFERENCES]:
    line = [text(name)]
    for task in names:
      metric = setups[task].metric
      for test in (setups[task].tests[0], setups[task].tests[-1]):
        mine = of(found, task=task, model=name, metric=metric, varies=test.varies)
        line.append(_cell(of(mine, setting=float(test.value), control="")))
    lines.append(line)
  columns = ["memory"]
  for task in names:
    for test in (setups[task].tests[0], setups[task].tests[-1]):
      columns.append(f"{text(task)}<br>{text(test.varies)} {test.value}")
  note = (
    "Mean over seeds at the learning rate that validation chose; the range of the seeds below it "
    "where it exceeds 0.02. oracle: the task's solver, with no memory but the input. floor: the "
    "best guess that knows which values occurred, but not whose they are."
  )
  return f'<h2>At a glance</h2>{table(columns, lines)}<p class="soft">{note}</p>'


def _task(setup, found: list[dict]) -> str:
  if not figures.models(found):
    return ""
  metric, settings = setup.metric, _settings(setup, found)
  lines = []
  for name in [*figures.models(found), *REFERENCES]:
    mine = of(found, model=name)
    line = [text(name), *_training_cells(mine)]
    for varies, setting in settings:
      here = of(mine, metric=metric, varies=varies, setting=setting)
      line.append(_cell(of(here, control=""), of(here, control="zeroed")))
    lines.append(line)
  columns = ["memory", "rate", f"solved (≥ {ENOUGH})", "steps to it"]
  columns += [f"{text(varies)} {number(setting)}" for varies, setting in settings]
  plots = _plots(setup, found)
  meaning = "whole examples right" if metric == "em" else "share of the answers right"
  return (
    f"<h2>{text(setup.name)}</h2><p>{meaning}; trained on {text(_told(setup))}</p>"
    f'{table(columns, lines)}<p class="soft">∅: with the memory zeroed before every segment.</p>'
    f"{_slopes(setup, found)}"
    f'<div class="charts">{"".join(plots)}</div>'
  )


def _slopes(setup, found: list[dict]) -> str:
  """How the metric changes with every doubling of the updates: the fit of a line over log2 U, the
  law that is published for language models."""
  parts = []
  for name in figures.models(found):
    mine = of(found, model=name, metric=setup.metric, varies="updates", control="")
    points = [(math.log2(row["setting"]), row["value"]) for row in mine if row["value"] is not None]
    if len({x for x, _ in points}) > 1:
      slope = statistics.linear_regression(*zip(*points, strict=True)).slope
      parts.append(f"{name} {slope:+.3f}")
  return f"<p>With every doubling of the updates: {text(', '.join(parts))}.</p>" if parts else ""


def _told(setup) -> str:
  return "; ".join(map(given, setup.train))


def _training_cells(mine: list[dict]) -> list[str]:
  """The learning rate, the share of seeds that reached the threshold, and their median step."""
  reached = of(mine, metric="steps_to_threshold")
  if not reached:
    return ["", "", ""]
  steps = sorted(row["value"] for row in reached if row["value"] is not None)
  middle = f"{statistics.median(steps):,.0f}" if steps else "-"
  return [f"{reached[0]['lr']:g}", f"{len(steps)} of {len(reached)}", middle]


def _plots(setup, found: list[dict]) -> list[str]:
  metric, plots = setup.metric, []
  for varies in dict.fromkeys(test.varies for test in setup.tests):
    trained = cells.trained_up_to(setup, varies)
    title = f"{setup.name}: {metric} over {varies}"
    plots.append(figures.over(found, metric, varies, trained, title))
  middle = setup.tests[min(1, len(setup.tests) - 1)]
  plots.append(figures.frontier(
    found, metric, middle.varies, float(middle.value),
    f"{setup.name}: {metric} over state bytes, {middle.varies} {middle.value}",
  ))  # fmt: skip
  plots += [
    figures.curves(found, f"{setup.name}: learning curves"),
    figures.bars(found, "steps_to_threshold", f"{setup.name}: steps to {ENOUGH}", "steps"),
    figures.bars(found, "train_tokens_per_cpu_second", f"{setup.name}: throughput, training",
                 "tokens per CPU second, all learning rates and seeds"),
  ]  # fmt: skip
  plots += _test_speed(setup, found)
  for name in figures.models(found):
    title = f"{setup.name}: {name}, by depth and length"
    plots.append(figures.heat(found, "acc_depth", name, title))
  for test in setup.tests[-2:]:
    title = f"{setup.name}: whose value is answered, {test.varies} {test.value}"
    plots.append(figures.ages(found, float(test.value), title))
  return plots


def _test_speed(setup, found: list[dict]) -> list[str]:
  found = [row for row in of(found, metric="test_tokens_per_second") if row["varies"] == "length"]
  title = f"{setup.name}: throughput over length, a segment a call"
  return [figures.speed(found, title)] if found else []


def _fixed(wanted: list[Cell]) -> str:
  """What all cells share."""
  cell = wanted[0]
  fields = {
    "shell": str(cell.budget.size), "training": str(cell.training),
    "examples of a test setting": cell.budget.examples,
    "rate": "the one with the best last validation, mean over seeds, at the training settings",
    "stop": f"all seeds of one rate have {cell.training.enough} on validation, or the last step",
    "tests": "named before training; never used to choose anything",
  }  # fmt: skip
  lines = [[text(key), text(value)] for key, value in fields.items()]
  for cell in {cell.memory: cell for cell in wanted}.values():
    lines.append([text(cell.memory), text(_described(cell))])
  return f"<h2>What is held fixed</h2>{table([], lines, 'fields')}"


def _described(cell: Cell) -> str:
  parts = [*cell.candidate.layers, *filter(None, (cell.candidate.around, cell.candidate.feed))]
  told = " + ".join(_factory(part) for part in parts) or "nothing"
  return f"{told}; feed-forward width {cell.hidden}; state of about {cell.size.state} bytes asked"


def _factory(part) -> str:
  """`Name(option=value, ...)` of a factory."""
  name = getattr(getattr(part, "func", part), "__name__", type(part).__name__)
  given = getattr(part, "keywords", {})
  inside = ", ".join(f"{k}={_factory(v) if callable(v) else v}" for k, v in given.items())
  return f"{name}({inside})"
