"""A plan as text, the same in a terminal and in Markdown."""

import math

from experiments.planning.plans import Plan

GIB = 2**30


def table(columns: list[str], rows: list[list[str]]) -> str:
  """A Markdown table with aligned columns."""
  widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
  line = lambda row: "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"  # noqa: E731
  return "\n".join([line(columns), line(["-" * w for w in widths]), *map(line, rows)])


def render(plan: Plan, tokens: float | None = None) -> str:
  """The whole plan."""
  parts = [_head(plan), _memory(plan), _work(plan), _exchanges(plan), _time(plan, tokens)]
  return "\n\n".join([*parts, _would_help(plan)]) + "\n"


def _head(plan: Plan) -> str:
  mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "1 device"
  lines = [
    f"{plan.recipe} on {plan.topology}: {plan.chips} chips, mesh {mesh}",
    f"{_count(plan.dense)} parameters, {_count(plan.table)} in tables; "
    f"{plan.tokens:,} tokens a step",
  ]
  if plan.estimate:
    lines.append(f"ESTIMATE: {plan.estimate}, with the figures of {plan.topology.split(':')[0]}")
  return "\n".join(lines)


def _memory(plan: Plan) -> str:
  memory = plan.memory
  rows = [[name, _gib(n)] for name, n in memory.parts.items() if n]
  rows.append(["beside them", _gib(memory.beside)])
  rows += [["needed", _gib(memory.needs)], ["capacity", _gib(plan.capacity)]]
  if memory.host:
    rows.append(["on the host", _gib(memory.host)])
  verdict = f"fits: {memory.needs / plan.capacity:.0%} of HBM"
  if not plan.fits:
    verdict = f"DOES NOT FIT: {memory.needs / plan.capacity:.1f} times the HBM there is"
    verdict += f"\n{plan.refusal}" if plan.refusal else ""
  largest = [[shape, _gib(n), made] for n, shape, made in memory.largest]
  text = table(["HBM of a chip", "GiB"], rows) + "\n\n" + verdict
  return text + "\n\n" + table(["largest arrays made", "GiB", "by"], largest)


def _work(plan: Plan) -> str:
  rows = [
    ["model", _tera(plan.model_flops), "3 forward passes, counted on the jaxpr"],
    ["hardware", _tera(plan.hardware_flops), "the step's jaxpr, what is recomputed included"],
  ]
  if not math.isnan(plan.counted_flops):
    said = "cost_analysis: loops once, kernels by estimate"
    rows.append(["compiler", _tera(plan.counted_flops), said])
  return table(["FLOPs of a chip", "TFLOP", "what"], rows)


def _exchanges(plan: Plan) -> str:
  if not plan.exchanges:
    return "Chips exchange nothing."
  rows = [
    [one.kind, "+".join(one.axes) if one.axes is not None else "?", f"{one.count:,}",
     f"{one.bytes / GIB:.3f}", _ms(one.seconds)]
    for one in plan.exchanges
  ]  # fmt: skip
  text = table(["exchange", "axes", "a step", "GiB sent", "ms"], rows)
  if plan.unknown_loops:
    text += f"\n\n{plan.unknown_loops} of them stand in loops of unknown length, counted once."
  return text


def _time(plan: Plan, tokens: float | None) -> str:
  roof = plan.roofline
  rows = [
    ["compute", _ms(roof.compute), f"{_tera(plan.hardware_flops)} TFLOP"],
    ["memory", _ms(roof.memory), f"{plan.hbm_bytes / GIB:.1f} GiB to and from HBM"],
    ["interconnect", _ms(roof.interconnect), "all exchanges, one after another"],
    ["step, overlapped", _ms(roof.step), f"{plan.utilisation:.1%} of peak (model FLOPs)"],
    ["step, one by one", _ms(roof.serial), f"{plan.serial_utilisation:.1%} of peak"],
  ]
  if plan.host_bytes:
    rows.append(["host link", "", f"{plan.host_bytes / GIB:.1f} GiB to and from the host"])
  text = table(["time", "ms", "what"], rows)
  text += f"\n\n{plan.tokens_per_second:,.0f} tokens/s at best, "
  text += f"{plan.tokens_per_second / plan.chips:,.0f} a chip"
  if tokens:
    hours = plan.hours(tokens)
    worst = hours * roof.serial / roof.step
    text += (
      f"; {_count(tokens)} tokens take {hours:,.1f} to {worst:,.1f} hours, "
      f"{hours * plan.chips:,.0f} to {worst * plan.chips:,.0f} chip-hours"
    )
  return text


def _would_help(plan: Plan) -> str:
  if not plan.fits:
    return "Would help: " + "; ".join(plan.advice)
  return f"Binds: {plan.roofline.binds}. " + "; ".join(plan.advice)


def _gib(n: float) -> str:
  return f"{n / GIB:.3f}" if n < GIB else f"{n / GIB:.2f}"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:,.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def _tera(flops: float) -> str:
  return f"{flops / 1e12:,.3g}" if flops < 1e14 else f"{flops / 1e12:,.0f}"


def _count(n: float) -> str:
  for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
    if n >= size:
      return f"{n / size:.1f} {unit}"
  return f"{n:.0f}"
