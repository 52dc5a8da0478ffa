"""What the default training run spends on anything but training.

    python -m benchmarks.loop

Tokens that the input pipeline makes alone, against those that the default model takes; seconds from
`python -m experiments.train` to the end of its first step; seconds for which a checkpoint holds up
the training, against the steps between two of them.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from experiments import runs
from experiments.configs import text
from experiments.jobs.text import make_step
from memjax import training

FIRST_STEP = ("--config.steps=1", "--config.twin.train=False", "--config.sample.tokens=1")


def pipeline_rate(corpus, config, batches: int, **options) -> float:
  """Tokens a second, nothing else running; the first batches fill the buffers."""
  made = corpus.train_batches(
    sequence_length=config.sequence_length, batch_size=config.batch_size, seed=0, **options
  )
  for _ in range(50):
    next(made)
  start = time.perf_counter()
  for _ in range(batches):
    next(made)
  seconds = time.perf_counter() - start
  made.close()
  return batches * config.batch_size * config.sequence_length / seconds


def step_seconds(config, corpus, steps: int):
  """Median seconds of a step of the default model, and its state."""
  state, optimizer, shardings = runs.set_up(config, corpus.vocab_size, config.model.memory)
  step = make_step(config, optimizer, shardings)
  made = corpus.train_batches(
    sequence_length=config.sequence_length, batch_size=config.batch_size, seed=0
  )
  times = []
  for _ in range(steps + 3):
    batch = jax.device_put(next(made))
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, batch))
    times.append(time.perf_counter() - start)
  made.close()
  return statistics.median(times[3:]), state


def save_seconds(state, saves: int) -> float:
  """Median seconds that a save holds up its caller, the one before being on disk already."""
  times = []
  with tempfile.TemporaryDirectory() as folder, training.Checkpoints(folder, keep=2) as checkpoints:
    for number in range(saves):
      times.append(checkpoints.save(number, state))
      checkpoints.wait()
  return statistics.median(times)


def first_step_seconds() -> float:
  """From the start of the script to the row of its first step in `metrics.csv`."""
  config = str(pathlib.Path(text.__file__))
  with tempfile.TemporaryDirectory() as folder:
    words = [sys.executable, "-m", "experiments.train", f"--config={config}"]
    start = time.perf_counter()
    process = subprocess.Popen(
      [*words, f"--workdir={folder}", *FIRST_STEP], stdout=subprocess.DEVNULL
    )
    found = pathlib.Path(folder) / text.get_config().model.memory / "metrics.csv"
    while not (found.exists() and len(found.read_text().splitlines()) > 1):
      if process.poll() is not None:
        raise RuntimeError(f"the run ended with status {process.returncode} before its first step")
      time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
  return seconds


def main() -> None:
  config = text.get_config()
  corpus = runs.load_corpus(config.data)
  stream = pipeline_rate(corpus, config, 2000)
  documents = pipeline_rate(corpus, config, 2000, pack=True)
  seconds, state = step_seconds(config, corpus, 40)
  takes = config.batch_size * config.sequence_length / seconds
  share = save_seconds(state, 7) / (config.checkpoint.every * seconds)
  rows = [
    ("pipeline, a stream, tokens/s", f"{stream:,.0f}", ""),
    ("pipeline, whole documents, tokens/s", f"{documents:,.0f}", ""),
    ("default model takes, tokens/s", f"{takes:,.0f}", ""),
    ("pipeline / model", f"{min(stream, documents) / takes:.0f}x", "5x"),
    ("start to first step, seconds", f"{first_step_seconds():.1f}", "40"),
    ("checkpoints, share of the steps' time", f"{share:.2%}", "10 %"),
  ]
  print(f"{'':40s}{'':>12s}   goal")
  for name, value, goal in rows:
    print(f"{name:40s}{value:>12s}   {goal}")


if __name__ == "__main__":
  main()
