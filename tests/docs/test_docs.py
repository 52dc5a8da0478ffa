"""Every Python block of the README and the guides runs, in order, in one namespace a file."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "docs/memories").glob("*.md"))]  # fmt: skip
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
  for match in BLOCK.finditer(page.read_text()):
    if match[1] == language:
      yield page.read_text()[: match.start()].count("\n") + 2, match[3]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_python_blocks_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["python"])
  namespace = {"__name__": "docs"}
  for line, code in blocks(page, "python"):
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_name_what_is_there(page):
  text = page.read_text()
  for module in re.findall(r"python -m (experiments\.[\w.]+)", text):
    assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
  for path in re.findall(r"(?:experiments|benchmarks)/[\w/]+\.py", text):
    assert (ROOT / path).exists(), path
  targets = (ROOT / "Makefile").read_text()
  for target in re.findall(r"`make ([\w-]+)", text):
    assert re.search(rf"^{target}:", targets, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
    assert (page.parent / target).exists(), target
