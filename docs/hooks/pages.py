"""Pages of what lies outside docs/: the README as the first page, the sources that pages link to;
links between them."""

import pathlib
import posixpath
import re
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[2]
OUTSIDE = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "contributing.md",
  "CHANGELOG.md": "changelog.md",
  "colab/README.md": "notebooks/index.md",
}
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.M | re.S)
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".md": "markdown"}


def outside() -> dict[str, str]:
  """Those of `OUTSIDE` that are there."""
  return {path: page for path, page in OUTSIDE.items() if (ROOT / path).exists()}


def guides() -> dict[str, str]:
  """The files of docs/ by their pages: `{"docs/contract.md": "contract.md"}`."""
  docs = ROOT / "docs"
  files = (f.relative_to(docs).as_posix() for f in sorted(docs.rglob("*.md")))
  return {f"docs/{file}": file for file in files if not file.startswith("hooks/")}


def sources(texts: dict[str, str], known: dict[str, str]) -> dict[str, str]:
  """Files that texts link to and that are no pages yet, by the pages that show them.

  Args:
    texts: Markdown by the path of its file from the repository's root.
    known: pages by the same paths.
  """
  found = {}
  for origin, text in texts.items():
    for target in targets(text):
      path = resolve(origin, target)
      if path in known or path.startswith("docs/") and not path.endswith(".py"):
        continue
      if (ROOT / path).is_file():
        found[path] = f"sources/{path}.md"
  return found


def source(path: str) -> str:
  """The page of a source file, which the search leaves out."""
  file = ROOT / path
  fence = "````" if "```" in file.read_text() else "```"
  language = LANGUAGES.get(file.suffix, "text")
  head = "---\nsearch:\n  exclude: true\n---\n"
  return f"{head}\n# {path}\n\n{fence}{language}\n{file.read_text().rstrip()}\n{fence}\n"


def targets(text: str) -> Iterator[str]:
  """Relative links of a text, without anchors and outside of code."""
  for piece in FENCE.split(text)[::2]:
    for match in LINK.finditer(piece):
      yield match[2]


def resolve(origin: str, target: str) -> str:
  """A relative link of a file, from the repository's root."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def rewrite(text: str, origin: str, page: str, known: dict[str, str]) -> str:
  """Text of a file with its links led to the pages of what they name.

  Args:
    text: Markdown.   origin: the file's path from the root.   page: the page that shows it.
    known: pages by the paths of their files.
  """

  def lead(match: re.Match) -> str:
    path = resolve(origin, match[2])
    readme = f"{path}/README.md"
    if path not in known and readme not in known:
      if not (path.startswith("docs/") and (ROOT / path).is_file()):
        return match[0]  # which the build refuses
      target = path.removeprefix("docs/")  # a picture
    else:
      target = known.get(path) or known[readme]
    return match[1] + posixpath.relpath(target, posixpath.dirname(page) or ".") + match[3]

  return outside_code(text, lambda piece: LINK.sub(lead, piece))


def outside_code(text: str, change: Callable[[str], str]) -> str:
  """A text, changed where it is not in a block of code."""
  pieces = FENCE.split(text)
  pieces[::2] = map(change, pieces[::2])
  return "".join(pieces)
