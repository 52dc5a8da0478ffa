"""Kernels for CPUs in C++: built when first needed, where there is a compiler.

XLA writes rows of a table on one thread, one array after the other. What must be faster is a
handler of XLA's foreign function interface, whose headers come with jaxlib.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax

OWN = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
FLAGS = "-std=c++17", "-O3", OWN, "-fno-math-errno", "-fno-trapping-math"
SWITCH = "MEMJAX_NATIVE"


def register(source: Path, *names: str) -> None:
  """Makes the handlers `names` of a source file known to XLA.

  The library is kept under `$XDG_CACHE_HOME/memjax`, or `~/.cache/memjax`, by what it was built of
  and for. The compiler is `$CXX`, else c++, g++ or clang++; `MEMJAX_NATIVE=0` builds nothing.

  Raises:
    NotImplementedError: it is switched off, there is no compiler, or (with a warning) it failed.
  """
  refusal = _tried(source, names)
  if refusal:
    raise NotImplementedError(refusal)


@functools.cache
def _tried(source: Path, names: tuple[str, ...]) -> str:
  """Does it, once a process; why it could not."""
  try:
    library = ctypes.CDLL(str(_built(source)))
  except NotImplementedError as error:
    return str(error)
  except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # RuntimeError: no home
    why = getattr(error, "stderr", None) or str(error)
    warnings.warn(
      f"{source.name} could not be built and loaded, so that tables are slower on this CPU: "
      f"{why.strip()[-400:]}\n({SWITCH}=0 does not try)", stacklevel=2,
    )  # fmt: skip
    return f"{source.name} could not be built and loaded"
  for name in names:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
  return ""


def _built(source: Path) -> Path:
  """The library of a source file.

  Raises:
    NotImplementedError: it is switched off, or there is no compiler.
    CalledProcessError, OSError, RuntimeError: the compiler failed, or there is no room for it.
  """
  if os.environ.get(SWITCH, "1") == "0":
    raise NotImplementedError(f"{SWITCH}=0 leaves the kernels in C++ out")
  command = *_compiler(), *FLAGS, "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"
  built_of = repr((source.read_text(), command, jax.__version__, _processor()))
  name = f"{source.stem}-{hashlib.sha256(built_of.encode()).hexdigest()[:16]}.so"
  folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memjax"
  if not (folder / name).exists():
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
      new = Path(scratch) / name
      make = [*command, "-w", str(source), "-o", str(new)]
      subprocess.run(make, check=True, capture_output=True, text=True)
      new.replace(folder / name)  # at once: another process may be building the same
  return folder / name


def _compiler() -> list[str]:
  chosen = shlex.split(os.environ.get("CXX", ""))
  if chosen:
    return chosen
  found = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
  if found is None:
    raise NotImplementedError("kernels in C++ need a compiler: install g++ or clang++, or set CXX")
  return [found]


def _processor() -> str:
  """What `OWN` looks at: a home may be shared by machines."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return f"{platform.node()} {platform.processor()}"
  told = "model name", "flags", "Features"
  return "".join(sorted({line for line in lines if line.startswith(told)}))
