"""Prints the CPU seconds that the laws took, memory by memory, at the end of the run."""

COLUMNS = 3


def pytest_terminal_summary(terminalreporter):
  seconds = {}
  for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
    for name, value in getattr(report, "user_properties", []):
      if name == "laws":
        memory, spent = value
        seconds[memory] = seconds.get(memory, 0) + spent
  if not seconds:
    return
  total = sum(seconds.values())
  terminalreporter.section(f"CPU seconds of the laws: {total:.0f} for {len(seconds)} memories")
  cells = [f"{s:6.1f} {name}" for name, s in sorted(seconds.items(), key=lambda item: -item[1])]
  width = max(map(len, cells)) + 2
  for start in range(0, len(cells), COLUMNS):
    terminalreporter.write_line("".join(c.ljust(width) for c in cells[start : start + COLUMNS]))
