"""Starts `python -m experiments.train` on a tiny model, as a user does, and looks at its files.

A `Site` is where a run lives: its text, its work directory and its logs. The persistent compilation
cache of jax is on, so that a second start costs less; it is a setting of jax, not of the script.
"""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 300  # seconds that anything may take on a busy machine
TIMEOUT = 30  # seconds a step may take, of several processes
HEARTBEAT = 100  # seconds after which jax takes a silent process for dead
TEMPORARY = ".orbax-checkpoint-tmp"
NAME = "memory_plus"
TINY = {
  "data.source": "text",
  "batch_size": 4,
  "sequence_length": 32,
  "model.dim": 16,
  "model.layers": 2,
  "model.memory_layers": "(1,)",
  "model.heads": 2,
  "model.memory_keys": 8,
  "model.memory_top_k": 4,
  "model.memory_query_dim": 8,
  "twin.train": False,
  "evaluation.every": 40,
  "evaluation.tokens": 256,
  "evaluation.final_tokens": 256,
  "checkpoint.every": 10,
  "sample.tokens": 4,
  "sample.evaluation_tokens": 0,
}


@dataclasses.dataclass
class Site:
  """One run.

  Attributes:
    work: the work directory.
    shared: the text, and caches, which runs share.
    steps: of the run.
    processes: how many one start has.
    fields: of the recipe, besides `TINY`.
  """

  work: pathlib.Path
  shared: pathlib.Path
  steps: int
  processes: int = 1
  fields: dict = dataclasses.field(default_factory=dict)
  starts: int = 0

  @property
  def text(self) -> pathlib.Path:
    return self.shared / "notes.txt"

  def write_text(self) -> None:
    lines = [f"{i}: the memory of line {i} is {i * i % 97}.\n" for i in range(800)]
    self.text.write_text("".join(lines))

  @property
  def checkpoints(self) -> pathlib.Path:
    return self.work / NAME / "checkpoints"

  @property
  def clock(self) -> pathlib.Path:
    """Hours by which the clock of the processes is wrong."""
    return self.shared / "clock"

  def start(self, jumping: bool = False) -> "Start":
    """Starts the script; `jumping`: with a clock that follows `clock`."""
    fields = {**TINY, "steps": self.steps, "data.path": self.text, **self.fields}
    fields["data.cache"] = self.shared / "cache"
    words = [sys.executable, "-m", "experiments.train", f"--workdir={self.work}"]
    words += [f"--config={ROOT / 'experiments/configs/text.py'}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    env = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(self.shared / "compiled"),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of a start
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONPATH": str(ROOT),
      "FAULT_CLOCK": str(self.clock),
    }
    if jumping:
      env["PYTHONPATH"] = f"{ROOT / 'tests/faults/clock'}:{ROOT}"
    self.starts += 1
    if self.processes > 1:
      words += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={self.processes}"]
      words += [f"--step_timeout={TIMEOUT}", f"--heartbeat_timeout={HEARTBEAT}"]
    return Start(self, [self._spawn(words, env, index) for index in range(self.processes)])

  def _spawn(self, words, env, index: int) -> subprocess.Popen:
    words = words + ([f"--process_id={index}"] if self.processes > 1 else [])
    with self.log(index).open("w") as log:
      return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)

  def log(self, index: int = 0) -> pathlib.Path:
    """What process `index` of the last start printed."""
    return self.shared / f"{self.work.name}-{self.starts}-{index}.log"

  def step(self) -> int:
    """The last step in the metrics."""
    path = self.work / NAME / "metrics.csv"
    try:
      with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400))
        rows = file.read().decode(errors="replace").split("\n")[:-1]  # the last may be cut
    except OSError:
      return 0
    numbers = [row.partition(",")[0] for row in rows[-2:]]
    return max((int(number) for number in numbers if number.isdigit()), default=0)

  def saved(self) -> list[int]:
    """Steps of the checkpoints that have their name, oldest first."""
    if not self.checkpoints.is_dir():
      return []
    return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

  def writing(self) -> bool:
    """Whether a checkpoint is being written."""
    try:
      return any(TEMPORARY in name for name in os.listdir(self.checkpoints))
    except OSError:
      return False

  def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
    """All that the last checkpoint holds, read by Orbax itself."""
    import orbax.checkpoint as ocp

    folder = self.checkpoints / str(step or self.steps) / "arrays"
    with ocp.PyTreeCheckpointer() as reader:
      return {name: np.asarray(a) for name, a in reader.restore(folder).items()}


@dataclasses.dataclass
class Start:
  """The processes of one start of the script."""

  site: Site
  processes: list[subprocess.Popen]
  began: float = dataclasses.field(default_factory=time.monotonic)

  def wait_until(self, condition, what: str) -> None:
    """Waits for `condition()`; fails if a process ends before."""
    while not condition():
      ended = [p.poll() for p in self.processes]
      assert all(status is None for status in ended), f"ended before {what}: {self.said()}"
      assert time.monotonic() - self.began < LIMIT, f"no {what}: {self.said()}"
      time.sleep(0.001)

  def wait_for_step(self, step: int) -> None:
    self.wait_until(lambda: self.site.step() >= step, f"step {step}")

  def signal(self, number: signal.Signals, indices=None) -> None:
    for index in range(len(self.processes)) if indices is None else indices:
      self.processes[index].send_signal(number)

  def ended(self, indices=None) -> tuple[list[int], float]:
    """Exit statuses of some of the processes, and how long the last took to end."""
    began = time.monotonic()
    chosen = self.processes if indices is None else [self.processes[i] for i in indices]
    try:
      statuses = [p.wait(timeout=LIMIT) for p in chosen]
    except subprocess.TimeoutExpired:
      raise AssertionError(f"a process did not end: {self.said()}") from None
    finally:
      self.kill() if indices is None else None
    return statuses, time.monotonic() - began

  def kill(self) -> None:
    """Ends whatever still runs."""
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait(timeout=LIMIT)

  def said(self, index: int | None = None) -> str:
    """The end of what the processes printed."""
    indices = range(len(self.processes)) if index is None else [index]
    return "\n".join(self.site.log(i).read_text()[-3000:] for i in indices)

  def finish(self) -> None:
    statuses, _ = self.ended()
    assert set(statuses) == {0}, f"{statuses}: {self.said()}"


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def same_end(site: Site, undisturbed: dict[str, np.ndarray]) -> None:
  """Asserts that the last checkpoint holds, bit for bit, what the undisturbed run's does."""
  got = site.arrays()
  assert set(got) == set(undisturbed) and len(got) > 30
  for name, array in undisturbed.items():
    assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
    assert got[name].tobytes() == array.tobytes(), name
