"""The page: one HTML file that needs nothing else; nothing that a run wrote can act in it."""

import base64
import datetime
import json
import statistics

from experiments.reporting.charts import Line, chart
from experiments.reporting.collect import Model, Run
from experiments.reporting.document import document, table, text
from experiments.reporting.markdown import markdown

AXES = ("step", "tokens", "seconds", "sequences", "exposures", "epoch")
SPEED = ("tokens_per_second", "tokens_per_second_per_chip", "mfu")
HEALTH = ("gradient_norm", "skipped_steps")
SHARES = ("mfu", "slots_used", "slots_read", "slots_written", "accuracy")
TITLES = {
  "mfu": "model-FLOPs utilisation",
  "kl_to_uniform": "KL of reads from uniform (nats)",
  "norm": "length of a memory token",
  "change": "change of the memory in a segment",
  "slots_read": "slots read, effectively",
  "slots_written": "slots written, effectively",
}


def page(run: Run, now: datetime.datetime | None = None) -> str:
  """The report of a run."""
  now = now or datetime.datetime.now()
  name = run.workdir.resolve().name
  sections = [
    _head(run, name, now), _summary(run), _losses(run), _panel("Speed", run, SPEED),
    _panel("Gradients", run, HEALTH), _memories(run), _samples(run), _results(run),
    _checkpoints(run), _settings(run),
  ]  # fmt: skip
  return document(name, sections)


def _head(run: Run, name: str, now: datetime.datetime) -> str:
  job = str(run.config.get("job", "")).rpartition(".")[2]
  devices = run.environment.get("devices") or []
  kinds = ", ".join(map(str, run.environment.get("device_kinds") or devices[:1]))
  parts = [job and f"recipe {job}", f"{len(devices)} x {kinds}" if devices else ""]
  parts += [
    f"started {str(run.environment['time'])[:16].replace('T', ' ')} UTC"
    if "time" in run.environment
    else ""
  ]
  parts += [f"this page {now:%Y-%m-%d %H:%M}"]
  notes = "".join(f"<p>{text(note)}</p>" for note in run.notes)
  return f'<h1>{text(name)}</h1><p class="soft">{text(" · ".join(p for p in parts if p))}</p>' + (
    f'<div class="notes">{notes}</div>' if notes else ""
  )


def _metric_names(models: list[Model]) -> list[str]:
  """Names of all metrics of losses: what is no axis, speed, health or memory."""
  names = dict.fromkeys(name for model in models for row in model.rows for name in row)
  skip = {*AXES, *SPEED, *HEALTH}
  found = [name for name in names if name not in skip and not name.startswith("memory/")]
  return sorted(found, key=lambda name: (name.startswith("train"), "loss" in name))


def _title(name: str) -> str:
  return TITLES.get(name, name.replace("_", " "))


def _summary(run: Run) -> str:
  models = [model for model in run.models if model.rows or model.checkpoints]
  if not models:
    return ""
  names = _metric_names(models)
  total = run.config.get("steps")
  columns = ["model", "step", "", "trained", *(_title(name) for name in names), "tokens/s", "MFU"]
  rows = []
  for model in models:
    step, cells = model.step, []
    share = min(1.0, step / total) if isinstance(total, int) and total else None
    cells += [text(model.name), f"{step:,}" + (f" of {total:,}" if share is not None else "")]
    width = f'<div class="bar"><b style="width:{share:.1%}"></b></div>' if share is not None else ""
    cells += [width, _time((model.column("seconds") or [0])[-1])]
    for name in names:
      values = model.column(name)
      cells.append(f"{values[-1]:.4g}" if values else "-")
    rates, shares = model.column("tokens_per_second"), model.column("mfu")
    cells.append(f"{statistics.median(rates):,.0f}" if rates else "-")
    cells.append(f"{statistics.median(shares):.1%}" if shares else "-")
    rows.append(cells)
  empty = {i for i, n in enumerate(columns) if all(row[i] in ("-", "") for row in rows)}
  keep = [i for i in range(len(columns)) if i not in empty]
  kept = [[row[i] for i in keep] for row in rows]
  return "<h2>Where it stands</h2>" + table([text(columns[i]) for i in keep], kept)


def _time(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _lines(models: list[Model], name: str, axis: str) -> list[Line]:
  lines = []
  for model in models:
    points = [(row[axis], row[name]) for row in model.rows if name in row and axis in row]
    lines.append(Line(model.name, points))
  return lines


def _axis(models: list[Model]) -> str:
  """What a run counts besides seconds."""
  names = {name for model in models for row in model.rows for name in row}
  return next((a for a in ("tokens", "sequences", "exposures", "epoch") if a in names), "step")


def _losses(run: Run) -> str:
  charts = []
  for name in _metric_names(run.models):
    for axis in (_axis(run.models), "seconds"):
      lines = _lines(run.models, name, axis)
      label = "training seconds" if axis == "seconds" else axis
      charts.append(chart(_title(name), lines, label, percent=name in SHARES))
  return _section("Loss and quality", charts)


def _panel(title: str, run: Run, names: tuple[str, ...]) -> str:
  charts = []
  for name in names:
    lines = _lines(run.models, name, "step")
    values = [y for line in lines for _, y in line.points]
    if name == "skipped_steps" and not any(values):
      continue  # as it should be
    if name == "tokens_per_second_per_chip" and values == [
      y for line in _lines(run.models, "tokens_per_second", "step") for _, y in line.points
    ]:
      continue  # one chip
    charts.append(chart(_title(name), lines, "step", percent=name in SHARES))
  return _section(title, charts)


def _memories(run: Run) -> str:
  """A chart for every model and kind of measurement, a line for every layer."""
  charts = []
  for model in run.models:
    names = dict.fromkeys(name for row in model.rows for name in row)
    kinds: dict[str, list[str]] = {}
    for name in names:
      if name.startswith("memory/"):
        kinds.setdefault(name.rpartition("/")[2], []).append(name)
    for kind, group in kinds.items():
      lines = []
      for name in group:
        path = name.removeprefix("memory/").rpartition("/")[0]
        label = f"layer {path}" if path.isdigit() else path or "the model"
        lines.append(Line(label, _lines([model], name, "step")[0].points))
      title = f"{model.name}: {_title(kind)}"
      charts.append(chart(title, lines, "step", percent=kind in SHARES))
  return _section("Memory usage, by layer", charts)


def _section(title: str, charts: list[str]) -> str:
  charts = [one for one in charts if one]
  return f'<h2>{title}</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _samples(run: Run) -> str:
  parts = []
  for model in run.models:
    if not model.samples:
      continue
    parts.append(f"<h3>{text(model.name)}</h3>{_sample(model.samples[-1])}")
    earlier = "".join(_sample(sample) for sample in reversed(model.samples[:-1]))
    if earlier:
      count = len(model.samples) - 1
      parts.append(f"<details><summary>{count} earlier</summary>{earlier}</details>")
  return "<h2>Samples</h2>" + "".join(parts) if parts else ""


def _sample(sample: dict) -> str:
  return (
    f'<p class="soft">step {sample["step"]:,}</p>'
    f"<pre><b>{text(sample['prompt'])}</b>{text(sample['text'])}</pre>"
  )


def _results(run: Run) -> str:
  parts = [f"<h2>Result</h2>{markdown(run.report, text)}"] if run.report else []
  if run.pictures:
    images = "".join(
      f'<p>{text(name)}</p><img alt="{text(name)}" src="data:image/png;base64,'
      f'{base64.b64encode(data).decode()}">'
      for name, data in run.pictures.items()
    )
    parts.append(f"<details><summary>Pictures that the run drew</summary>{images}</details>")
  return "".join(parts)


def _checkpoints(run: Run) -> str:
  rows = []
  for model in run.models:
    for saved in model.checkpoints:
      when = datetime.datetime.fromtimestamp(saved.time)
      metric = "-" if saved.metric is None else f"{saved.metric:.6g}"
      size = f"{saved.size / 1e6:,.1f} MB"
      rows.append([text(model.name), f"{saved.step:,}", metric, size, f"{when:%Y-%m-%d %H:%M}"])
  columns = ["model", "step", "metric", "size", "saved"]
  return "<h2>Checkpoints</h2>" + table(columns, rows) if rows else ""


def _settings(run: Run) -> str:
  parts = []
  for title, values in (("Configuration", run.config), ("Environment", run.environment)):
    if values:
      rows = [[text(name), text(value)] for name, value in _fields(values)]
      parts.append(
        f"<details><summary>{title}</summary>{table([], rows, 'fields')}</details>"
      )  # fmt: skip
  return "<h2>Settings</h2>" + "".join(parts) if parts else ""


def _fields(values: dict, prefix: str = "") -> list[tuple[str, str]]:
  found = []
  for key, value in values.items():
    if isinstance(value, dict) and value:
      found += _fields(value, f"{prefix}{key}.")
    else:
      found.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
  return found
