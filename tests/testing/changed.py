"""Which rows of the registry changed against the main branch: they get all laws at once."""

import functools
import inspect
import pathlib
import subprocess

import jax
from flax import nnx

from memjax.core import submodules
from tests.registry import Row

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A change there touches every memory, and the fixed sample stands for them.
SHARED = ("memjax/core/", "memjax/testing/")


def _git(*args: str) -> list[str]:
  done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
  return done.stdout.split() if done.returncode == 0 else []


@functools.cache
def changed_files() -> frozenset[str]:
  """Files that differ from the main branch, uncommitted ones too; none without git or main."""
  try:
    base = _git("merge-base", "HEAD", "origin/main") or _git("merge-base", "HEAD", "main")
    if not base:
      return frozenset()
    files = _git("diff", "--name-only", base[0]) + _git(
      "ls-files", "--others", "--exclude-standard"
    )
  except OSError:  # there is no git
    return frozenset()
  ours = ("memjax/", "pallas_kernels/")
  return frozenset(f for f in files if f.startswith(ours) and not f.startswith(SHARED))


def sources(row: Row) -> set[str]:
  """The files that define the modules of a row's memory, and those that the row names."""
  model = jax.eval_shape(lambda: row.make(rngs=nnx.Rngs(0)))
  files = {pathlib.Path(inspect.getfile(type(module))).resolve() for module in submodules(model)}
  return {f.relative_to(ROOT).as_posix() for f in files if f.is_relative_to(ROOT)} | set(
    row.sources
  )


def changed(row: Row) -> bool:
  """Whether one of the row's files differs from the main branch."""
  return bool(changed_files()) and not changed_files().isdisjoint(sources(row))
