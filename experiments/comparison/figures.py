"""The plots of a comparison, drawn from its rows, as `<figure>`s with an image inside."""

import base64
import io
import math
import statistics
from collections.abc import Iterable

from experiments.reporting.document import text

MARKS = "osD^vP*Xph<>"
REFERENCES = {"chance": ":", "floor": "--"}


def of(rows: list[dict], **wanted) -> list[dict]:
  """The rows whose columns have these values."""
  return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def models(rows: Iterable[dict]) -> list[str]:
  """Names of the memories, in their order of appearance."""
  return list(dict.fromkeys(row["model"] for row in rows if row["model"] not in _NO_MODELS))


_NO_MODELS = {"chance", "floor", "oracle"}


def _new(wide: float = 4.6, high: float = 3.2):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(wide, high), layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots()


def _inline(figure, title: str) -> str:
  data = io.BytesIO()
  figure.savefig(data, dpi=120, format="png")
  source = base64.b64encode(data.getvalue()).decode()
  return (
    f'<figure><figcaption>{text(title)}</figcaption><img alt="{text(title)}" '
    f'src="data:image/png;base64,{source}"></figure>'
  )


def _style(place: int) -> dict:
  return {"color": f"C{place % 10}", "marker": MARKS[place % len(MARKS)], "markersize": 4}


def _by(rows: list[dict], column: str) -> list[tuple[float, list[float]]]:
  """Values of each number in a column, in their order."""
  found: dict[float, list[float]] = {}
  for row in rows:
    if row.get(column) is not None and row.get("value") is not None:
      found.setdefault(row[column], []).append(row["value"])
  return sorted(found.items())


def over(rows: list[dict], metric: str, varies: str, trained: float | None, title: str) -> str:
  """The metric over what varies (log2), a line a memory with the range of its seeds; chance and
  floor; a vertical line where training ends. "" where fewer than two settings were tested."""
  rows = [row for row in of(rows, metric=metric, varies=varies) if not row["control"]]
  if len({row["setting"] for row in rows if row["model"] not in _NO_MODELS}) < 2:
    return ""
  figure, panel = _new()
  for place, name in enumerate(models(rows)):
    points = _by(of(rows, model=name), "setting")
    xs = [x for x, _ in points]
    panel.plot(xs, [statistics.fmean(v) for _, v in points], label=name, lw=1.4, **_style(place))
    low, high = [min(v) for _, v in points], [max(v) for _, v in points]
    panel.fill_between(xs, low, high, color=f"C{place % 10}", alpha=0.10, lw=0)
  for name, dashes in REFERENCES.items():
    points = _by(of(rows, model=name), "setting")
    if points:
      panel.plot([x for x, _ in points], [v[0] for _, v in points], dashes, color="0.4", label=name)
  if trained is not None:
    panel.axvline(trained, color="0.7", lw=0.8)
  panel.set_xscale("log", base=2 if max(row["setting"] for row in rows) < 5000 else 10)
  panel.set(xlabel=varies, ylabel=metric, ylim=(-0.03, 1.03))
  panel.grid(alpha=0.25)
  panel.legend(fontsize=6.5, ncols=2)
  return _inline(figure, title)


def frontier(rows: list[dict], metric: str, varies: str, setting: float, title: str) -> str:
  """The metric of one setting over the bytes that are carried, a mark a memory, sizes of one memory
  joined; the bits that any solver needs as a vertical line."""
  rows = [row for row in of(rows, metric=metric, varies=varies, setting=setting)
          if not row["control"]]  # fmt: skip
  figure, panel = _new()
  names = models(rows)
  for place, base in enumerate(dict.fromkeys(name.partition("@")[0] for name in names)):
    points = []
    for name in (n for n in names if n.partition("@")[0] == base):
      mine = [row for row in of(rows, model=name) if row["value"] is not None]
      if mine:
        points.append((mine[0]["state_bytes"], statistics.fmean(row["value"] for row in mine)))
    points = sorted((max(x, 1), y) for x, y in points)
    panel.plot([x for x, _ in points], [y for _, y in points], lw=1, label=base, **_style(place))
  oracle = [row["state_bytes"] for row in of(rows, model="oracle") if row["state_bytes"]]
  if oracle:
    panel.axvline(oracle[0], color="0.4", ls="--", label="needed by any solver")
  panel.set_xscale("log")
  panel.set(xlabel="state bytes a sequence", ylabel=metric, ylim=(-0.03, 1.03))
  panel.grid(alpha=0.25)
  panel.legend(fontsize=6.5, ncols=2)
  return _inline(figure, title)


def heat(rows: list[dict], metric: str, name: str, title: str) -> str:
  """Depth x length of one memory, colours from 0 to 1, cells annotated. "" without such rows."""
  rows = of(rows, metric=metric, model=name)
  if not rows:
    return ""
  lengths = sorted({row["setting"] for row in rows})
  depths = sorted({row["key"] for row in rows})
  figure, panel = _new(3.6, 2.6)
  for y, depth in enumerate(depths):
    for x, length in enumerate(lengths):
      values = [(r["value"], r["n"]) for r in of(rows, setting=length, key=depth)]
      count = sum(n for _, n in values)
      if not count:
        continue
      share = sum(v * n for v, n in values) / count
      panel.imshow([[share]], vmin=0, vmax=1, cmap="viridis", aspect="auto",
                   extent=(x - 0.5, x + 0.5, y + 0.5, y - 0.5))  # fmt: skip
      colour = "black" if share > 0.6 else "white"
      panel.text(x, y, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7)
  panel.set(xlim=(-0.5, len(lengths) - 0.5), ylim=(len(depths) - 0.5, -0.5))
  panel.set_xticks(range(len(lengths)), [f"{n:.0f}" for n in lengths])
  panel.set_yticks(range(len(depths)), [f"{d:.0f} %" for d in depths])
  panel.set(xlabel="length", ylabel="depth")
  return _inline(figure, title)


def curves(rows: list[dict], title: str) -> str:
  """Validation over steps at the best learning rate, a thin line a seed."""
  rows = of(rows, metric="curve_validation")
  if not rows:
    return ""
  figure, panel = _new()
  for place, name in enumerate(models(rows)):
    mine = of(rows, model=name)
    for number, seed in enumerate(sorted({row["seed"] for row in mine})):
      points = [(r["key"], r["value"]) for r in of(mine, seed=seed) if r["value"] is not None]
      label = name if number == 0 else None
      xs, ys = [x for x, _ in points], [y for _, y in points]
      panel.plot(xs, ys, lw=0.9, color=f"C{place % 10}", label=label, alpha=0.8)
  panel.axhline(0.99, color="0.7", lw=0.8)
  panel.set_xscale("log")
  panel.set(xlabel="steps", ylabel="validation at the training settings", ylim=(-0.03, 1.03))
  panel.grid(alpha=0.25)
  panel.legend(fontsize=6.5, ncols=2)
  return _inline(figure, title)


def bars(rows: list[dict], metric: str, title: str, label: str) -> str:
  """One number a memory (the mean of its rows); a hollow bar to the edge where there is none."""
  rows = of(rows, metric=metric)
  if not rows:
    return ""
  names = models(rows)
  figure, panel = _new(4.6, 0.9 + 0.24 * len(names))
  means = []
  for name in names:
    values = [r["value"] for r in of(rows, model=name) if r["value"] is not None]
    means.append(statistics.fmean(values) if values else math.nan)
  most = max([m for m in means if not math.isnan(m)], default=1.0)
  for place, mean in enumerate(means):
    if math.isnan(mean):
      panel.barh(place, most, color="none", edgecolor="0.7", ls=":")
      panel.text(most / 2, place, "not reached", ha="center", va="center", fontsize=7, color="0.4")
    else:
      panel.barh(place, mean, color=f"C{place % 10}")
      panel.text(mean, place, f" {mean:,.0f}", va="center", fontsize=7)
  panel.set_yticks(range(len(names)), names, fontsize=7)
  panel.set(xlabel=label, xlim=(0, 1.15 * most))
  panel.locator_params(axis="x", nbins=4)
  panel.invert_yaxis()
  return _inline(figure, title)


def ages(rows: list[dict], setting: float, title: str) -> str:
  """Of what age the answers are: 0 the last value of the key that was asked, then those that it
  replaced; another key's; one that was never told. Shares of all answers, a row a memory."""
  rows = of(rows, metric="age_share", setting=setting)
  if not rows:
    return ""
  names, seeds = models(rows), max(1, len({row["seed"] for row in rows}))
  kinds = {"last (right)": (0, 0), "one before": (1, 1), "older": (2, math.inf),
           "another key's": (-1, -1), "never told": (-2, -2)}  # fmt: skip
  figure, panel = _new(4.6, 1.2 + 0.24 * len(names))
  left = [0.0] * len(names)
  for place, (kind, (low, high)) in enumerate(kinds.items()):
    share = [
      sum(r["value"] for r in of(rows, model=n) if low <= r["key"] <= high) / seeds for n in names
    ]
    panel.barh(range(len(names)), share, left=left, label=kind, color=f"C{place}")
    left = [a + b for a, b in zip(left, share, strict=True)]
  panel.set_yticks(range(len(names)), names, fontsize=7)
  panel.set(xlabel="share of the answers", xlim=(0, 1))
  panel.invert_yaxis()
  figure.legend(fontsize=6.5, ncols=5, loc="outside lower center")
  return _inline(figure, title)


def speed(rows: list[dict], title: str) -> str:
  """Tokens a second over length at tests, which carry the state from segment to segment."""
  figure, panel = _new()
  for place, name in enumerate(models(rows)):
    points = _by(of(rows, model=name), "length")
    ys = [statistics.fmean(v) for _, v in points]
    panel.plot([x for x, _ in points], ys, lw=1.2, label=name, **_style(place))
  panel.set_xscale("log", base=2)
  panel.set_yscale("log")
  panel.set(xlabel="length", ylabel="tokens/s")
  panel.grid(alpha=0.25)
  panel.legend(fontsize=6.5, ncols=2)
  return _inline(figure, title)
