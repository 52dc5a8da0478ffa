"""Settings of every test, made before JAX starts: 8 CPU devices, strict ranks, exact products."""

import gc
import os
import pathlib

# A TPU or GPU run sets JAX_PLATFORMS itself; libtpu, where installed, must not look for a TPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import flax
import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_enable_x64", False)

# The same examples in every run; compiling makes the first one slow.
hypothesis.settings.register_profile(
  "memjax", database=None, deadline=None, derandomize=True, max_examples=25
)
hypothesis.settings.load_profile("memjax")


def unoptimised(config):
  """Whether LLVM's optimisation is off: it is a third of the default run's time."""
  return config.option.markexpr == "not slow" and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ


# The emitters that jax 0.10 uses by default take three times as long to compile; later ones have no
# others. Optimised runs (slow tests, the newest jax) compile as users' programs do.
CHEAP = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_configure(config):
  if unoptimised(config):
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.__version_info__ < (0, 11):
      compile_cheaply()


def compile_cheaply():
  """The flags are read once, for this process's CPU: not by libtpu, which knows fewer, and not by
  the scripts that tests start."""
  before = os.environ.get("XLA_FLAGS")
  os.environ["XLA_FLAGS"] = f"{before or ''} {CHEAP}".strip()
  jax.devices("cpu")
  del os.environ["XLA_FLAGS"]
  if before is not None:
    os.environ["XLA_FLAGS"] = before


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 30_000


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
  """Frees compiled programs before they take all maps that a process of Linux may have (65,530):
  the compiler would crash. A test leaves some 150."""
  yield
  if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
    jax.clear_caches()
    gc.collect()


def pytest_report_header(config):
  code = "unoptimised code" if unoptimised(config) else "optimised code"
  return f"jax {jax.__version__}, flax {flax.__version__}, {jax.device_count()} devices, {code}"


def pytest_collection_modifyitems(items):
  """Skips tests marked `tpu` or `gpu` on a machine without one."""
  for item in items:
    for platform in ("tpu", "gpu"):
      if item.get_closest_marker(platform) and jax.default_backend() != platform:
        item.add_marker(pytest.mark.skip(reason=f"needs a {platform.upper()}"))
