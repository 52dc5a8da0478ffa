"""One process a host: how they find each other, and what only one of them does.

`experiments.train` is started once on every host. Under SLURM, on Cloud TPU, under Kubernetes or
Open MPI the processes find each other; anywhere else each is told with `--coordinator=HOST:PORT
--process_id=I --num_processes=N`.
"""

import glob
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments import rollcall
from experiments.console import console
from experiments.rollcall import StartError
from memjax.training import Watchdog, processes

__all__ = [
  "Place",
  "StartError",
  "Silent",
  "define_flags",
  "detect",
  "first",
  "once",
  "same",
  "start",
  "watch",
  "watchdog",
]

_watchdog = Watchdog(0)  # of this process, as its flags are
_COMPILING = 3600.0  # seconds more for the first step, evaluation and save


class Place(NamedTuple):
  """Where this process stands in a run of several: the coordinator is HOST:PORT of process 0."""

  coordinator: str
  process: int
  count: int
  devices: list[int] | None = None  # local ones; None: all


def define_flags() -> None:
  """The flags of a script that may run in several processes."""
  flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, a free port")
  flags.DEFINE_integer("process_id", None, "the number of this process, from 0", lower_bound=0)
  flags.DEFINE_integer("num_processes", None, "how many there are", lower_bound=1)
  flags.DEFINE_float("start_timeout", 300, "seconds to wait for all processes", lower_bound=1)
  flags.DEFINE_float("heartbeat_timeout", 100, "seconds after which a silent one is dead", 10)
  flags.DEFINE_float(
    "step_timeout", None, "seconds that a step, evaluation or save may take; 0: any (default: 600 "
    "with several processes, 0 with one)", lower_bound=0,
  )  # fmt: skip


def start() -> None:
  """Joins the processes of this run, as its flags or its environment say; returns at once if there
  is but one. Comes before anything asks JAX for a device.

  Raises:
    StartError: not all came in time; the message names those missing.
    ValueError: flags that do not go together.
  """
  options = flags.FLAGS
  place = _given(options) or detect(int(options.start_timeout))
  if place is None or place.count == 1:
    return
  rollcall.meet(place.coordinator, place.process, place.count, options.start_timeout)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    place.coordinator,
    place.count,
    place.process,
    local_device_ids=place.devices,
    cluster_detection_method="deactivate",
    initialization_timeout=int(options.start_timeout),
    heartbeat_timeout_seconds=int(options.heartbeat_timeout),
  )
  console.quiet = not first()


def _given(options) -> Place | None:
  names = ("coordinator", "process_id", "num_processes")
  values = [getattr(options, name) for name in names]
  missing = [name for name, value in zip(names, values, strict=True) if value is None]
  if len(missing) == len(names):
    return None
  if missing:
    raise ValueError(f"--{missing[0]} is missing: --{', --'.join(names)} go together")
  coordinator, process, count = values
  if process >= count:
    raise ValueError(f"--process_id={process} must be below --num_processes={count}")
  return Place(coordinator, process, count)


def detect(timeout: int = 300) -> Place | None:
  """What JAX's own detection finds; None where no launcher has left its mark."""
  launcher = _launcher()
  if launcher is None:
    return None
  from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize()` asks

  method = "mpi4py" if launcher == "mpi4py" else None
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the `kubernetes` package that is not there: see below
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, method, timeout)
  coordinator, count, process, devices = found
  if coordinator is None or count is None or process is None:
    if launcher != "TPU":  # a TPU may be alone
      raise ValueError(
        f"this process was started by {launcher}, but JAX cannot tell its number (Kubernetes: pip "
        "install kubernetes; MPI: pip install mpi4py): give --coordinator=HOST:PORT "
        "--process_id=I --num_processes=N"
      )
    return None
  return Place(coordinator, process, count, None if devices is None else list(devices))


def _launcher() -> str | None:
  """Who has started this process as one of several."""
  env = os.environ

  def several(name: str) -> bool:
    return env.get(name, "1").isdigit() and int(env.get(name, "1")) > 1

  if several("SLURM_NTASKS") and "SLURM_STEP_NODELIST" in env and "SLURM_PROCID" in env:
    return "SLURM"
  if several("OMPI_COMM_WORLD_SIZE"):
    return "Open MPI" if "OMPI_MCA_orte_hnp_uri" in env else "mpi4py"
  if several("PMI_SIZE"):
    return "mpi4py"
  if not env.get("JAX_PLATFORMS", "tpu").startswith("tpu") or not importlib.util.find_spec(
    "libtpu"
  ):
    tpu = False
  else:
    tpu = bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))
  if tpu:
    return "TPU"
  if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
    return "Kubernetes"
  return None


def first() -> bool:
  """Whether this is the process that prints and writes."""
  return jax.process_index() == 0


def watch(timeout: float | None = None) -> Watchdog:
  """A watchdog of `timeout` seconds, by default those of `--step_timeout`; the first of each kind
  may take an hour more."""
  if timeout is None:
    timeout = flags.FLAGS.step_timeout
  if timeout is None:
    timeout = 600.0 if jax.process_count() > 1 else 0.0
  global _watchdog
  _watchdog = Watchdog(timeout, first=_COMPILING)
  return _watchdog


def watchdog() -> Watchdog:
  """The one that `watch` made last, for `fit`; before that, one that watches nothing."""
  return _watchdog


def once(action: Callable[[], Any], errors: tuple[type[Exception], ...]) -> None:
  """Process 0 does it and the others wait; one of `errors` is raised on all."""
  failure = None
  if first():
    try:
      action()
    except errors as error:
      failure = error
  told = processes.from_first(None if failure is None else [type(failure).__name__, str(failure)])
  if failure is not None:
    raise failure
  if told is not None:
    kind = next((error for error in errors if error.__name__ == told[0]), RuntimeError)
    raise kind(told[1])


def same(what: str, value: Any) -> None:
  """Raises ValueError unless the JSON value is equal on all processes."""
  values = processes.from_all(value)
  others = [str(i) for i, other in enumerate(values) if other != values[0]]
  if others:
    raise ValueError(
      f"{what} is not the same on all processes: process {', '.join(others)} differs from process 0"
    )


class Silent:
  """In place of what writes, where another process does: takes any call and does nothing."""

  def __getattr__(self, name: str) -> Callable:
    return lambda *args, **options: None
