"""What MkDocs runs: pages of the API, of all memories, of the notebooks and of files outside docs/,
and links between them."""

import os
import pathlib
import posixpath
import re
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

from mkdocs.structure.files import File, InclusionLevel  # noqa: E402

from docs.hooks import api, notebooks, pages, table  # noqa: E402

CODE = re.compile(r"(?<![\[`])`[\w.]+\.\w+(?:\(\))?`(?![\]`])")


class Site:
  """What one build is made of.

  Attributes:
    made: generated Markdown by page.   images: bytes by file.   hidden: pages outside of the menu.
    known: pages by the paths of their files from the repository's root.
    names: where the API pages tell of a name.
  """

  def __init__(self):
    self.known = pages.guides() | pages.outside()
    sections = api.sections()
    self.names = api.Names(sections)
    self.made = {
      page.uri: api.markdown(page, self.names, found[1:] if page is found[0] else ())
      for found in sections.values()
      for page in found
    }
    self.menu = {"API": [_section(name, found) for name, found in sections.items()]}
    self.made["all_memories.md"] = table.markdown(
      lambda code: self.names.link(code, "all_memories.md")
    )
    books, self.images = notebooks.pages()
    index = [page for path, page in pages.outside().items() if path.startswith("colab/")]
    self.menu["Notebooks"] = index + [page for page, _, _ in books]
    self.made |= {page: text for page, _, text in books}
    self.known |= {path: page for page, path, _ in books}
    texts = {path: (ROOT / path).read_text() for path in self.known if path.endswith(".md")}
    texts |= {path: text for _, path, text in books} | {
      "docs/all_memories.md": self.made["all_memories.md"]
    }
    shown = pages.sources(texts, self.known)
    self.hidden = set(shown.values())
    self.made |= {page: pages.source(path) for path, page in shown.items()}
    self.made |= {page: texts[path] for path, page in pages.outside().items()}
    self.known |= shown
    self.files = {page: path for path, page in self.known.items()}
    self.files["all_memories.md"] = "docs/all_memories.md"


def _section(name: str, found: list[api.Page]):
  if len(found) == 1:
    return {name: found[0].uri}
  rest = [{_title(page): page.uri} for page in found[1:]]
  return {name: [found[0].uri, *rest]}


def _title(page: api.Page) -> str:
  """A file of a memory goes by the memory's name."""
  found = [name for name, value in page.names.items() if api.is_memory(value)]
  return found[0] if len(found) == 1 else posixpath.basename(page.uri).removesuffix(".md")


def on_config(config):
  config.site = Site()
  config.nav = [filled for entry in config.nav for filled in _filled(entry, config.site.menu)]
  return config


def _filled(entry, menu: dict) -> list:
  """An entry of the menu whose list is "generated" gets it, or goes where there is nothing."""
  ((name, value),) = entry.items()
  if value == "generated":
    return [{name: menu[name]}] if menu[name] else []
  return [entry]


def on_files(files, config):
  site = config.site
  for page, text in site.made.items():
    hidden = InclusionLevel.NOT_IN_NAV if page in site.hidden else InclusionLevel.UNDEFINED
    files.append(File.generated(config, page, content=text, inclusion=hidden))
  for path, content in site.images.items():
    files.append(File.generated(config, path, content=content))
  return files


def on_page_markdown(markdown, page, config, files):
  site, uri = config.site, page.file.src_uri
  if uri in site.hidden or uri.startswith("api/"):
    return markdown
  link = lambda match: site.names.link(match[0], uri)  # noqa: E731
  markdown = pages.rewrite(markdown, site.files[uri], uri, site.known)
  return pages.outside_code(markdown, lambda piece: CODE.sub(link, piece))
