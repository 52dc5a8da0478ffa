"""What a user waits for before anything runs: importing memjax, and tracing and compiling the
default model.

    python benchmarks/startup.py
"""

import functools
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from flax import nnx

from experiments import models
from experiments.configs import text
from memjax import training
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

IMPORT = """
import time, jax, jax.numpy, flax.nnx
start = time.perf_counter()
import memjax
print(time.perf_counter() - start)
"""


def import_seconds(runs: int = 5) -> float:
  """Median seconds of `import memjax` after jax and flax are imported, in fresh processes."""
  words = [sys.executable, "-c", IMPORT]
  times = [
    float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    for _ in range(runs + 1)
  ]
  return statistics.median(times[1:])


def compile_seconds(model: LanguageModel, batch: int, length: int) -> float:
  """Seconds to trace and compile one training step (forward, backward, AdamW)."""
  jax.clear_caches()
  optimizer = training.make_optimizer(model, learning_rate=1e-3, table_learning_rate=1e-3)
  state = training.init_train_state(model, optimizer, key=jax.random.key(0))
  step = training.make_train_step(training.language_model_loss(), optimizer)
  shape = (batch, length)
  ids, flags = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
  batch = {"inputs": ids, "targets": ids, "reset": ~flags, "valid": flags}
  start = time.perf_counter()
  step.lower(state, batch).compile()
  return time.perf_counter() - start


def deep(layers: int) -> LanguageModel:
  """The dense default model at another depth."""
  body = functools.partial(
    Stack, pattern=(functools.partial(Attention, heads=4), FeedForward), repeats=layers
  )
  return LanguageModel(256, 128, body=body, rngs=nnx.Rngs(0))


def main() -> None:
  config = text.get_config()
  rows = [("import memjax, beyond jax and flax", import_seconds(), "0.5 s")]
  default = models.build(config.model, 256, memory=config.model.memory, seed=0)
  compile_seconds(deep(1), 2, 64)  # warm-up of the compiler itself
  rows.append(("default model: trace and compile", compile_seconds(default, 16, 256), "30 s"))
  shallow, tall = (compile_seconds(deep(n), 2, 64) for n in (12, 48))
  rows += [
    ("12 layers: trace and compile", shallow, ""),
    ("48 layers: trace and compile", tall, ""),
  ]
  print(f"{'':40s}{'seconds':>10s}   goal")
  for name, seconds, goal in rows:
    print(f"{name:40s}{seconds:10.2f}   {goal}")
  print(f"{'48 layers / 12 layers':40s}{tall / shallow:10.2f}   1.5")


if __name__ == "__main__":
  main()
