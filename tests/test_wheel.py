"""The wheel as a user gets it: built, installed into a clean environment, imported elsewhere."""

import os
import pathlib
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("memjax", "pallas_kernels")


def run(*command, cwd):
  """Runs a command outside the source tree's reach; returns what it printed."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
  done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("dist")
  build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
  run(*build, "--outdir", str(folder), str(ROOT), cwd=folder)
  (path,) = folder.glob("memjax-*.whl")
  return path


def test_wheel_holds_the_two_packages_and_nothing_else(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  tops = {name.split("/")[0] for name in names}
  assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
  assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
  sources = {
    str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
  }
  assert {name for name in names if name.endswith(".py")} == sources


def test_wheel_installs_and_imports_from_a_clean_environment(wheel, tmp_path):
  run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
  python = str(tmp_path / "env" / "bin" / "python")
  install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
  run(*install, "--no-deps", "--no-index", str(wheel), cwd=tmp_path)

  show_site = "import sysconfig; print(sysconfig.get_path('purelib'))"
  site = pathlib.Path(run(python, "-c", show_site, cwd=tmp_path).strip())
  # The dependencies are borrowed; an editable memjax is not (its .pth file is not read this way).
  here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
  (site / "borrowed.pth").write_text("\n".join(sorted(here)))

  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  script = (
    "import importlib.metadata, importlib.util, memjax, pallas_kernels\n"
    "print(memjax.__file__, pallas_kernels.__file__, sep='\\n')\n"
    "print(importlib.metadata.version('memjax'), memjax.__version__)\n"
    "print([n for n in ('experiments', 'benchmarks', 'tests') if importlib.util.find_spec(n)])"
  )
  memjax, kernels, version, strangers = run(python, "-c", script, cwd=elsewhere).splitlines()
  assert pathlib.Path(memjax).is_relative_to(site)
  assert pathlib.Path(kernels).is_relative_to(site)
  assert version.split() == [wheel.name.split("-")[1]] * 2
  assert strangers == "[]"
