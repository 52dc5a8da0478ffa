"""The notebooks run from top to bottom in a small setting, draw something, and teach one thing."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from tests.colab import notebook

ROOT = pathlib.Path(__file__).parents[2]
PATHS = sorted((ROOT / "colab").glob("*.ipynb"))
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
every = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def run(number, monkeypatch, tmp_path, fast=True):
  """What the notebook left in its namespace."""
  [path] = (path for path in PATHS if path.name.startswith(f"{number}_"))
  monkeypatch.chdir(tmp_path)
  if fast:
    monkeypatch.setenv("MEMJAX_FAST", "1")
  else:
    monkeypatch.delenv("MEMJAX_FAST", raising=False)
  found, figures = notebook.run(path)
  assert figures and not any(map(notebook.empty, figures))
  return found


@every
def test_as_committed(path):
  """Short, without outputs, as Colab opens it."""
  found = json.loads(path.read_text())
  cells = found["cells"]
  assert len(cells) <= 25 and found["nbformat"] == 4 and "colab" in found["metadata"]
  assert len({cell["id"] for cell in cells}) == len(cells)
  for cell in cells:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
  title, *texts = notebook.sources(path, "markdown")
  assert title.startswith("# ") and title.count("**The one thing to learn:**") == 1
  badge = f"https://colab.research.google.com/{HOME.removeprefix('https://').replace('.com', '')}"
  assert f"({badge}/blob/main/colab/{path.name})" in title
  assert len(texts) >= len(notebook.sources(path)) // 2, "cells need a word before them"
  for target in re.findall(rf"\({HOME}/blob/main/([^)#]+)", "".join(texts)):
    assert (ROOT / target).exists(), target


def test_first_cells_install():
  """All alike; the second has the setting."""
  first, second = zip(*(notebook.sources(path)[:2] for path in PATHS), strict=True)
  assert len(set(first)) == 1 and "pip" in first[0] and f"git+{HOME}" in first[0]
  assert all('FAST = bool(os.environ.get("MEMJAX_FAST"))' in cell for cell in second)


@pytest.mark.parametrize(
  ("there", "chips"),
  [((), "jax[]"), (("libtpu",), "jax[tpu]"), (("jax_cuda12_plugin",), "jax[cuda12]"),
   (("memjax",), None)],
)  # fmt: skip
def test_what_is_installed(there, chips, monkeypatch):
  """Nothing where memjax is; else the runtime's accelerator is kept in step with jax."""
  ran = []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in there or None)
  monkeypatch.setattr(subprocess, "check_call", ran.append)
  exec(notebook.sources(PATHS[0])[0], {})
  assert [command[-1] for command in ran] == ([] if chips is None else [chips])


def test_index():
  """colab/README.md has a row for every notebook."""
  rows = re.findall(r"\]\(([^)]+\.ipynb)\)", (ROOT / "colab/README.md").read_text())
  assert rows == [path.name for path in PATHS]


def test_your_own_loop(monkeypatch, tmp_path):
  found = run(1, monkeypatch, tmp_path)
  assert len(found["curve"]) == found["STEPS"]
  np.testing.assert_allclose(found["jnp"].concatenate([found["first"], found["second"]], axis=1),
                             found["y"], atol=1e-5)  # fmt: skip


def test_product_keys(monkeypatch, tmp_path):
  found = run(2, monkeypatch, tmp_path)
  rows, length = found["held_out"][:, :-1].shape
  np.testing.assert_allclose(found["reads"].sum(), 2 * rows * length, rtol=1e-5)  # two heads
  assert found["held_out_loss"](found["model"], found["held_out"]) != found["value"]


def test_long_document(monkeypatch, tmp_path):
  found = run(3, monkeypatch, tmp_path)
  assert len(found["curve"]) == sum(steps for *_, steps in found["LESSONS"])
  assert found["change"].shape == (found["count"], found["segments"])


def test_sharded_table():
  """In a process of its own: it asks for eight devices before JAX has begun."""
  env = os.environ | {"MEMJAX_FAST": "1", "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
  env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  [path] = (path for path in PATHS if path.name.startswith("4_"))
  command = [sys.executable, "-W", "error", "-m", "tests.colab.notebook", str(path)]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "8 devices of kind cpu: {'data': 2, 'memory': 4}" in done.stdout
  assert json.loads(done.stdout.splitlines()[-1]) == {"figures": 2, "empty": 0}
  apart = re.findall(r"last loss \S+ +largest difference (\S+)", done.stdout)
  assert len(apart) == 2 and max(map(float, apart)) < 1e-5
  sizes = re.findall(r"planned +(\S+) MiB +compiled +(\S+) MiB", done.stdout)
  assert len(sizes) == 2
  for planned, compiled in sizes:
    np.testing.assert_allclose(float(planned), float(compiled), atol=0.01)


def test_your_own_memory(monkeypatch, tmp_path):
  verdicts = run(5, monkeypatch, tmp_path)["verdicts"]
  broken = {name: {r.law for r in verdict.failed} for name, verdict in verdicts.items()}
  assert broken == {
    "first draft": {"types", "reset", "padding"}, "second draft": {"reset", "padding"},
    "third draft": set(),
  }  # fmt: skip


@pytest.mark.slow
def test_the_machine_learns_to_copy(monkeypatch, tmp_path):
  found = run(1, monkeypatch, tmp_path, fast=False)
  assert np.mean(found["curve"][-20:]) < 0.01
  assert max(s for n, s in zip(found["lengths"], found["share"], strict=True) if n <= 10) < 0.02


@pytest.mark.slow
def test_the_table_is_used(monkeypatch, tmp_path):
  found = run(2, monkeypatch, tmp_path, fast=False)
  loss = float(found["held_out_loss"](found["model"], found["held_out"]))
  assert loss < 4.6 and found["value"] > loss + 0.02  # `value`: of a table of zeros


@pytest.mark.slow
def test_the_needle_is_found(monkeypatch, tmp_path):
  maps = run(3, monkeypatch, tmp_path, fast=False)["maps"]
  assert maps["with its memory"][:, :5].mean() > 0.95  # up to 16 segments
  assert maps["memory reset every segment"][:-1, 2:].mean() < 0.15
