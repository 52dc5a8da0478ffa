"""The scripts, started as a user starts them, on a small text."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY = {
  "data.source": "text",
  "steps": 12,
  "batch_size": 4,
  "sequence_length": 32,
  "model.dim": 16,
  "model.layers": 3,
  "model.heads": 2,
  "model.memory_keys": 8,
  "model.memory_top_k": 4,
  "model.memory_query_dim": 8,
  "evaluation.every": 4,
  "evaluation.tokens": 256,
  "evaluation.final_tokens": 512,
  "checkpoint.every": 4,
  "sample.tokens": 8,
  "sample.evaluation_tokens": 8,
}


def command(module: str, workdir, **fields) -> list[str]:
  """`python -m experiments.<module>` on `workdir`; fields are those of the recipe, dots as `__`."""
  words = [sys.executable, "-m", f"experiments.{module}", f"--workdir={workdir}"]
  return words + [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def train_command(workdir, text, **fields) -> list[str]:
  """The training script on a tiny model and the text file `text`."""
  given = {**{name.replace(".", "__"): value for name, value in TINY.items()}, **fields}
  given.setdefault("data__path", text)
  given.setdefault("data__cache", pathlib.Path(text).parent / "cache")
  words = command("train", workdir, **given)
  return [*words[:3], f"--config={ROOT / 'experiments/configs/text.py'}", *words[3:]]


def run(words, expect: int = 0, **environment) -> subprocess.CompletedProcess:
  """Runs a command to its end and asserts its exit status."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120", **environment}
  done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == expect, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
  return done


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> pathlib.Path:
  """A small text file."""
  path = tmp_path_factory.mktemp("text") / "notes.txt"
  lines = [f"{i}: the memory of line {i} is {i * i % 97}.\n" for i in range(800)]
  path.write_text("".join(lines))
  return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, text):
  """A finished run of memory and twin: (workdir, what was printed). Its last line says whether
  TensorFlow was loaded."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  code = (
    "import sys\n"
    "from experiments import cli, train\n"
    "try:\n  cli.run(train.main)\n"
    "except SystemExit as end:\n  assert not end.code, end.code\n"
    "print('tensorflow' in sys.modules)\n"
  )
  return workdir, run([sys.executable, "-c", code, *train_command(workdir, text)[3:]]).stdout
