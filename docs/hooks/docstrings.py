"""Docstrings of this library's form as Markdown.

Its items name several arguments at once (`slots, width: N and W.`), or stand side by side, three
spaces apart; its equations are indented or aligned. The usual parsers lose both.
"""

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Warns|Yields):$")
NAME = r"[*`]{0,2}[A-Za-z_][\w.]*`?"
ITEM = re.compile(rf"({NAME}(?:, {NAME})*): +(.*)", re.S)
BESIDE = re.compile(rf" {{3,}}(?={NAME}(?:, {NAME})*: )")
ALIGNED = re.compile(r"[^.\s] {2,}\S")
CODE = re.compile(r"(`[^`]+`)")
PAPER = re.compile(r"\b(arXiv\s+)(\d{4}\.\d{4,5})")

Link = Callable[[str], str]
Block = tuple[str, str]  # "indented", "aligned" or "" for prose; its text


def markdown(text: str | None, link: Link = lambda code: code) -> str:
  """The Markdown of a docstring.

  Args:
    text: as `__doc__` has it.
    link: what becomes of a piece of code, given with its backticks.
  """
  lines = inspect.cleandoc(text or "").splitlines()
  parts: list[Block] = []
  at = 0
  while at < len(lines):
    end = at + 1
    if SECTION.match(lines[at]):
      while end < len(lines) and (lines[end].startswith(" ") or not lines[end]):
        end += 1
      parts.append(("", _section(lines[at][:-1], lines[at + 1 : end], link)))
    elif lines[at]:
      while end < len(lines) and lines[end] and not SECTION.match(lines[end]):
        end += 1
      parts += _paragraph(lines[at:end], link)
    at = end
  return "\n\n".join(_fenced(parts))


def prose(text: str, link: Link) -> str:
  """Text whose signs mean themselves; code stays, and is linked."""
  pieces = CODE.split(text)
  pieces[1::2] = [link(piece) for piece in pieces[1::2]]
  pieces[::2] = [
    re.sub(r"(\*\*[^*\n]+\*\*)|([*_|]|\](?=[(\[]))", _literal, p).replace("<", "&lt;")
    for p in pieces[::2]
  ]
  pieces[::2] = [PAPER.sub(r"\1[\2](https://arxiv.org/abs/\2)", piece) for piece in pieces[::2]]
  return "".join(pieces)


def _literal(match: re.Match) -> str:
  """A sign that means itself; what is emphasised stays so."""
  return match[1] or "\\" + match[2]


def _paragraph(lines: list[str], link: Link) -> list[Block]:
  """Lines up to an empty one: prose, equations, or one after the other."""
  if sum(bool(ALIGNED.search(line)) for line in lines) * 2 >= len(lines):
    kind = "indented" if all(line.startswith("  ") for line in lines) else "aligned"
    return [(kind, "\n".join(lines))]
  found: list[Block] = []
  for kind, part in itertools.groupby(lines, lambda line: line.startswith("  ")):
    text = "\n".join(part)
    found.append(("indented", text) if kind else ("", prose(text, link)))
  return found


def _fenced(blocks: list[Block]) -> list[str]:
  """Markdown of blocks; indented ones that follow each other are one."""
  found = []
  for kind, group in itertools.groupby(blocks, lambda block: block[0]):
    parts = [text for _, text in group]
    if kind == "indented":
      parts = ["\n\n".join(parts)]
    found += [_fence(textwrap.dedent(part)) for part in parts] if kind else parts
  return found


def _fence(text: str) -> str:
  """Equations, or Python if it is that and calls something."""
  try:
    example = "(" in text and bool(ast.parse(text))
  except SyntaxError:
    example = False
  return f"```{'python' if example else 'text'}\n{text}\n```"


def _section(name: str, lines: list[str], link: Link) -> str:
  body = inspect.cleandoc("\n".join(["", *lines]))
  if not _items(body):
    paragraphs = re.split(r"\n\n+", body)
    blocks = [block for text in paragraphs for block in _paragraph(text.splitlines(), link)]
    return "\n\n".join([f"**{name}**", *_fenced(blocks)])
  rows = []
  for names, text in _items(body):
    shown = ", ".join(f"`{n.strip('`')}`" for n in names.split(", "))
    shown = link(shown) if name == "Raises" else shown
    rows.append(f"- {shown}: {prose(text, link)}" if names else f"- {prose(text, link)}")
  return f"**{name}**\n\n" + "\n".join(rows)


def _items(body: str) -> list[tuple[str, str]]:
  """`(names, text)` of a section, in order; nothing unless it begins with an item."""
  whole: list[str] = []
  for line in body.splitlines():
    if whole and (line.startswith(" ") or not ITEM.match(line)):
      whole[-1] += " " + line.strip()
    elif ITEM.match(line):
      whole.append(line)
    else:
      return []
  found = []
  for item in whole:
    for piece in BESIDE.split(item):
      match = ITEM.match(piece.strip())
      assert match
      found.append((match[1], re.sub(r" {2,}", " ", match[2])))
  return found
