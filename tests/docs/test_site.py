"""The site's pages: docstrings and links as Markdown, what the table says, the README's agreement
with it; the whole build by `-m slow`, where the extra `docs` is installed."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

import memjax
from docs.hooks import api, docstrings, memories, notebooks, pages
from docs.hooks.sizes import SIZES
from memjax.slots import NeuralTuringMachine
from tests.registry import public_memories, rows

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text().partition("## The memories")[2].partition("\n## ")[0]


def named(cls):
  return f"{cls.__module__.split('.')[1]}.{cls.__name__}"


def readme_rows():
  """Names in the first column of the README's table, and the row's arXiv ids."""
  for line in README.splitlines():
    if line.startswith("| `"):
      first, paper = line.split("|")[1:3]
      names = re.findall(r"`([\w.]+)`", first)
      family = names[0].partition(".")[0]
      full = [n if "." in n else f"{family}.{n}" for n in names]
      yield full, re.findall(r"(?:abs|doi\.org)/([\w./]+)\)", paper)


def test_readme_and_table_have_the_same_memories():
  public = {named(cls) for cls in public_memories()}
  found = [name for names, _ in readme_rows() for name in names]
  assert len(found) == len(set(found))
  assert public <= set(found), f"no row in the README for {sorted(public - set(found))}"
  for name in set(found) - public:  # parts of a memory
    family, _, part = name.partition(".")
    assert part in getattr(memjax, family).__all__, name


def test_readme_and_docstrings_name_the_same_papers():
  papers = {named(cls): memories.paper(cls) for cls in public_memories()}
  for names, ids in readme_rows():
    own = {papers[n][1] for n in names if n in papers} - {""}
    assert not ids or own == set(ids), f"{names}: the README has {ids}, the docstring {own}"
    for name in set(names) & set(papers) if ids else ():
      assert papers[name][1] in dict(map(reversed, papers.values())), name


def test_menu_has_every_guide():
  menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
  missing = [page for page in pages.guides().values() if not re.search(rf" {page}$", menu, re.M)]
  assert not missing, f"put {', '.join(missing)} into the nav of mkdocs.yml"


def test_sizes_are_of_memories():
  assert set(SIZES) <= {cls.__name__ for cls in public_memories()}


def test_entry_counts_what_a_memory_has():
  found = [row for row in rows() if row.name.startswith("ntm-")]
  entry = memories.entry(NeuralTuringMachine, found, {})
  slots, width, hidden = 128, 20, 100
  assert entry.state == 4 * (slots * width + 2 * slots + width + 2 * hidden)
  assert entry.number == "1410.5401" and entry.title == "Neural Turing Machines"
  assert entry.place == "layer" and entry.laws == tuple(
    "types split reset padding causality rows compile sharding remembers".split()
  )
  assert 2 * entry.parameters < entry.flops < 4 * entry.parameters


def test_docstring_keeps_equations_and_splits_items():
  made = docstrings.markdown(
    """One line, with `code` and a_b < c (arXiv 1410.5401).

    y = x W      in one
    z = y + x

    As follows:

      m = 0

    Args:
      a, b: two of
        them.   c: `[B, T]`.
      *rest: others.

    Returns:
      `[B]` float32.
    """,
    link=lambda code: f"<{code}>",
  )
  assert made == (
    "One line, with <`code`> and a\\_b &lt; c (arXiv [1410.5401](https://arxiv.org/abs/1410.5401))."
    "\n\n```text\ny = x W      in one\nz = y + x\n```\n\nAs follows:\n\n```text\nm = 0\n```\n\n"
    "**Args**\n\n- `a`, `b`: two of them.\n- `c`: <`[B, T]`>.\n- `*rest`: others.\n\n"
    "**Returns**\n\n<`[B]`> float32."
  )


def test_names_lead_to_what_they_name():
  found = api.sections(("memjax.slots", "memjax.testing"))
  names = api.Names(found)
  page = "api/memjax.slots/ntm.md"
  assert names.link("`NTMState`", page) == "[`NTMState`](#NTMState)"
  assert names.link("`slots.LM2`", page) == "[`slots.LM2`](lm2.md#LM2)"
  assert names.link("`LM2`", "index.md") == "[`LM2`](api/memjax.slots/lm2.md#LM2)"
  assert names.link("`state`", page) == "`state`"
  own = next(p for p in found["memjax.slots"] if p.uri == page)
  text = api.markdown(own, names)
  assert "dim: int, *, out: int | None = None, slots: int = 128" in text
  assert "## `NTMState` { #NTMState }" in text and "- `slots`, `width`: N and W." in text


def test_links_lead_to_pages():
  known = {"docs/a.md": "a.md", "README.md": "index.md", "docs/p/README.md": "p/README.md"}
  known |= {"experiments/train.py": "sources/experiments/train.py.md"}
  text = "[r](../README.md#x) [p](p) [s](../experiments/train.py) [n](none.md)\n```\n[p](p)\n```\n"
  assert pages.rewrite(text, "docs/a.md", "a.md", known) == (
    "[r](index.md#x) [p](p/README.md) [s](sources/experiments/train.py.md) [n](none.md)\n"
    "```\n[p](p)\n```\n"
  )
  shown = pages.sources({"docs/a.md": text}, {"README.md": "index.md"})
  assert shown == {"experiments/train.py": "sources/experiments/train.py.md"}


def test_notebook_shows_outputs_and_pictures():
  shown = {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": "<Figure>"}}
  said = {"output_type": "stream", "text": ["50 %\r", "100 %\r\n", "\x1b[1mdone\x1b[0m\n"]}
  cells = [
    {"cell_type": "markdown", "source": ["# T\n", "\n", "[![Colab](b.svg)](c)\n", "\n", "Text."]},
    {"cell_type": "code", "source": "x = 1", "outputs": [said, shown]},
  ]
  text, images = notebooks.markdown({"cells": cells}, "n", "small")
  assert images == {"notebooks/n-0.png": b"hi"}
  assert text.startswith("# T\n\n*Run in the small setting") and "Colab" not in text
  assert "Text.\n\n```python\nx = 1\n```\n\n```text\n100 %\ndone\n```\n\n![" in text


@pytest.mark.slow
def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
  for package in ("mkdocs", "material", "latex2mathml"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"needs {package}: pip install -e '.[docs]'")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
  env = {"PATH": "/usr/bin:/bin", "NOTEBOOKS": "none", "NO_MKDOCS_2_WARNING": "1"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  found = sorted(tmp_path.rglob("*.html"))
  assert len(found) > 100
  for file in found:
    text = file.read_text()
    loaded = re.findall(
      r"<(?:script|img|iframe|link)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*", text
    )
    assert not loaded, f"{file}: {loaded}"
  for file in tmp_path.rglob("*.css"):
    assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", file.read_text()), file
