"""A page of HTML that needs nothing else, and in which nothing that a run wrote can act."""

import html

from experiments.reporting.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, sections: list[str], style: str = "") -> str:
  """The page of these sections, HTML already; empty ones are left out. `style`: more CSS."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    f"<title>{text(title)}</title><style>{CSS}{style}</style></head><body><main>"
    + "\n".join(section for section in sections if section)
    + "</main></body></html>\n"
  )


def text(value) -> str:
  """Escaped; characters that a page may not hold are replaced."""
  return html.escape("".join(map(_visible, str(value))))


def _visible(c: str) -> str:
  code = ord(c)
  lost = code < 32 and c not in "\n\t" or 0x7F <= code < 0xA0
  return "\ufffd" if lost or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE else c


def table(columns: list[str], rows: list[list[str]], kind: str = "") -> str:
  """Cells are HTML already."""
  head = "".join(f"<th>{cell}</th>" for cell in columns)
  body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
  head = f"<thead><tr>{head}</tr></thead>" if columns else ""
  return f'<div class="scroll"><table class="{kind}">{head}<tbody>{body}</tbody></table></div>'
