"""The little Markdown that reports are written in: headings, tables, fenced text, paragraphs."""

from collections.abc import Callable


def markdown(source: str, text: Callable[[str], str]) -> str:
  """HTML of a `report.md`; everything goes through `text`, which escapes it."""
  parts, block, fenced = [], [], False
  for line in [*source.splitlines(), ""]:
    if line.startswith("```"):
      if fenced:
        parts.append(f"<pre>{text(chr(10).join(block))}</pre>")
        block = []
      fenced = not fenced
    elif fenced:
      block.append(line)
    elif line.startswith("|"):
      block.append(line)
    else:
      if block:
        parts.append(_table(block, text))
        block = []
      if line.startswith("#"):
        parts.append(f"<h3>{text(line.lstrip('#').strip())}</h3>")
      elif line.strip():
        parts.append(f"<p>{text(line)}</p>")
  if block:
    parts.append(f"<pre>{text(chr(10).join(block))}</pre>")
  return "".join(parts)


def _table(lines: list[str], text: Callable[[str], str]) -> str:
  rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
  rows = [row for row in rows if not all(set(cell) <= set("-: ") for cell in row)]
  head = "".join(f"<th>{text(cell)}</th>" for cell in rows[0]) if rows else ""
  body = "".join(
    "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
  )
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )
