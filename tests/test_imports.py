"""Imports point one way, and `import memjax` is light.

experiments, benchmarks, colab -> memjax.training, data, tasks -> memjax.transformer and families
-> memjax.core -> pallas_kernels -> jax.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
APPLICATIONS = {"experiments", "benchmarks", "colab", "tests"}
# Parts of memjax that stand above the families; every other part but core is a family.
ABOVE = {"training", "data", "tasks", "testing"}


def modules(package):
  """(dotted name, path, is a package) of every module of a package."""
  for path in sorted((ROOT / package).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    yield ".".join(parts[:-1] if is_package else parts), path, is_package


def imports(name, source, is_package):
  """Dotted names that a module imports, wherever in it; `from a import b` counts as a.b."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = name.split(".")
        up = parts[: len(parts) - node.level + is_package]
        base = ".".join([*up, base] if base else up)
      found |= {f"{base}.{alias.name}" for alias in node.names}
  return found


def part(name):
  """The part of memjax that a dotted name belongs to: memjax.core.state -> core."""
  return (name.split(".") + [""])[1]


def refusal(importer, imported):
  """Why `importer` may not import `imported`, or None."""
  top, target = importer.split(".")[0], imported.split(".")[0]
  if target in APPLICATIONS:
    return "a library never imports what is built on it"
  if top == "pallas_kernels":
    allowed = {"pallas_kernels", "jax", "numpy"} | sys.stdlib_module_names
    return None if target in allowed else "kernels need nothing but JAX"
  if target != "memjax" or not part(importer):
    return None
  source, goal = part(importer), part(imported)
  if source == goal or source == "testing":
    return None
  if source == "core":
    return "core imports no other part of memjax"
  if source not in ABOVE and goal != "core":
    return "a family imports core alone; what two need moves down into core or an op"
  return "only tests import memjax.testing" if goal == "testing" else None


@pytest.mark.parametrize(
  ("importer", "source", "imported", "refused"),
  [
    ("memjax.core.state", "import memjax.slots.ntm", "memjax.slots.ntm", True),
    ("memjax.core", "from . import state", "memjax.core.state", False),
    ("memjax.slots.ntm", "from ..parametric import pkm", "memjax.parametric.pkm", True),
    ("memjax.slots.ntm", "from memjax import core", "memjax.core", False),
    ("memjax.training.step", "from memjax import transformer", "memjax.transformer", False),
    ("memjax.transformer.stack", "def f():\n  import memjax.data", "memjax.data", True),
    ("memjax.data.text", "import experiments.train", "experiments.train", True),
    ("pallas_kernels.topk.op", "from flax import nnx", "flax.nnx", True),
    ("pallas_kernels.topk.op", "import memjax.core", "memjax.core", True),
    ("pallas_kernels.topk.op", "from jax import numpy", "jax.numpy", False),
  ],
)
def test_the_rule_itself(importer, source, imported, refused):
  is_package = importer.count(".") == 1
  assert imports(importer, source, is_package) == {imported}
  assert (refusal(importer, imported) is not None) == refused


@pytest.mark.parametrize("package", ["memjax", "pallas_kernels"])
def test_imports_point_one_way(package):
  wrong = [
    f"{path.relative_to(ROOT)} imports {imported}: {why}"
    for name, path, is_package in modules(package)
    for imported in sorted(imports(name, path.read_text(encoding="utf-8"), is_package))
    if (why := refusal(name, imported))
  ]
  assert not wrong, "\n".join(wrong)


def run(script):
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_import_memjax_is_light():
  """CPU time beyond jax and flax, since tests share the cores: 0.06 s when this was written."""
  seconds, loaded = run(
    "import sys, time, jax\n"
    "from flax import nnx\n"
    "start = time.process_time()\n"
    "import memjax\n"
    "print(time.process_time() - start)\n"
    "print(*{name.split('.')[0] for name in sys.modules})"
  ).splitlines()
  heavy = {"tensorflow", "tensorflow_datasets", "orbax", "grain", "tensorstore", "matplotlib"}
  assert not heavy & set(loaded.split())
  assert float(seconds) < 0.5


def test_importing_does_not_start_a_backend():
  """`jax.distributed.initialize` and device settings must still be possible after the import."""
  run(
    "import memjax, pallas_kernels\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized(), 'an import asked for devices'"
  )
