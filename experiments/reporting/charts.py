"""Line charts as inline SVG, coloured by the page's style sheet."""

import dataclasses
import html
import math

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38
COLOURS = 8  # of the style sheet: --c0 to --c7
POINTS = 400  # most points of a line


@dataclasses.dataclass
class Line:
  """One line: its name in the legend, and its points in order of x."""

  name: str
  points: list[tuple[float, float]]


def number(value: float) -> str:
  """A number as a person would write it: `1.2M`, `340k`, `0.043`."""
  if value == 0 or not math.isfinite(value):
    return "0" if value == 0 else str(value)
  for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      return f"{_short(value / size)}{unit}"
  return _short(value) if abs(value) >= 1e-3 else f"{value:.3g}"


def _short(value: float) -> str:
  return f"{value:.4g}"


def chart(title: str, lines: list[Line], x: str, *, percent: bool = False) -> str:
  """A `<figure>` with the lines over `x`; "" if no line has a point. Values that vary more than
  fifty-fold, all positive, stand on a logarithmic axis."""
  lines = [Line(line.name, _finite(line.points)) for line in lines]
  last = [line.points[-1][1] if line.points else 0.0 for line in lines]
  lines = [Line(line.name, _thin(line.points)) for line in lines]
  shown = [(place, line) for place, line in enumerate(lines) if line.points]
  if not shown:
    return ""
  xs = [px for _, line in shown for px, _ in line.points]
  ys = [py for _, line in shown for _, py in line.points]
  log = min(ys) > 0 and max(ys) > 50 * min(ys)
  across, up = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT), _Axis(
    min(ys), max(ys), HEIGHT - BOTTOM, TOP, pad=0.06, log=log
  )  # fmt: skip
  write = (lambda v: f"{number(100 * v)}%") if percent else number
  parts = [_grid(across, up, x, write)]
  for place, line in shown:
    parts.append(_line(line, place % COLOURS, across, up, x, write))
  names = "".join(
    f'<span><i class="c{place % COLOURS}"></i>{html.escape(line.name)} '
    f"<b>{write(last[place])}</b></span>"
    for place, line in shown
  )
  note = " <small>(log)</small>" if log else ""
  return (
    f"<figure><figcaption>{html.escape(title)}{note}</figcaption>"
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} over '
    f'{html.escape(x)}">{"".join(parts)}</svg><div class="legend">{names}</div></figure>'
  )


class _Axis:
  """From values to places on the picture."""

  def __init__(self, low, high, start, end, *, pad: float = 0.0, log: bool = False):
    self.log = log
    low, high = (math.log10(low), math.log10(high)) if log else (low, high)
    if pad:  # noise on a flat line is not to fill the picture
      least = 0.02 if log else 0.02 * max(abs(low), abs(high), 1e-9)
      room = max((high - low) * pad, (least - (high - low)) / 2)
      low, high = low - room, high + room
    self.low, self.high = low, high
    if self.high == self.low:
      self.high = self.low + 1
    self.start, self.end = start, end

  def __call__(self, value: float) -> float:
    value = math.log10(value) if self.log else value
    share = (value - self.low) / (self.high - self.low)
    return self.start + share * (self.end - self.start)

  def ticks(self, most: int) -> list[float]:
    """Round values, at most about so many."""
    if self.log:
      low, high = math.ceil(self.low), math.floor(self.high)
      marks = [1, 2, 5] if high - low < 2 else [1]
      every = max(1, math.ceil((high - low) / most))
      powers = range(low - 1, high + 1, every)
      found = [m * 10.0**p for p in powers for m in marks]
      return [v for v in found if self.low <= math.log10(v) <= self.high]
    step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step)
                if (self.high - self.low) / s <= most)  # fmt: skip
    first = math.ceil(self.low / step - 1e-9)
    return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _finite(points):
  return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points):
  """At most `POINTS` points: means of runs of neighbours."""
  if len(points) <= POINTS:
    return points
  size = math.ceil(len(points) / POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  mean = lambda group, i: sum(point[i] for point in group) / len(group)  # noqa: E731
  return [(mean(group, 0), mean(group, 1)) for group in groups]


def _grid(across: _Axis, up: _Axis, x: str, write) -> str:
  parts = []
  for value in up.ticks(6):
    y = up(value)
    parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{write(value)}</text>')
  for value in across.ticks(6):
    place = f'x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 16}"'
    parts.append(f'<text {place} class="middle">{number(value)}</text>')
  middle = (LEFT + WIDTH - RIGHT) / 2
  parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" class="middle">{html.escape(x)}</text>')
  return "".join(parts)


def _line(line: Line, colour: int, across: _Axis, up: _Axis, x: str, write) -> str:
  places = [(across(px), up(py)) for px, py in line.points]
  path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
  dots = ""
  if len(places) <= 40:
    dots = "".join(
      f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6"><title>{html.escape(line.name)}: '
      f"{write(vy)} at {number(vx)} {html.escape(x)}</title></circle>"
      for (px, py), (vx, vy) in zip(places, line.points, strict=True)
    )
  return f'<g class="c{colour}"><path class="line" d="{path}"/>{dots}</g>'
