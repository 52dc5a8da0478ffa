"""A training script for test_kill.py: `python -m tests.training.killed WORKDIR`.

The tiny model with a table of 5 MB, so that a save takes a while, with noise and a state carried
over batches. Each loss goes to losses.txt as it is known, the last state to final.npz.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import flatten
from memjax.training import (
  Checkpoints,
  StopOnSignal,
  check_config,
  evaluate,
  fit,
  init_train_state,
  make_eval_step,
  make_optimizer,
  make_train_step,
  warmup_decay,
)
from tests.training.tiny import Batches, Tiny, no_memory, squares

CONFIG = {"steps": 40, "save_every": 4, "evaluate_every": 10, "rows": 400_000}
BAD = {5, 23}


def main(workdir: pathlib.Path):
  check_config(workdir, CONFIG)
  model = jax.jit(lambda: Tiny(nnx.Rngs(0), CONFIG["rows"]))()
  rate = warmup_decay(0.01, steps=CONFIG["steps"], warmup=5)
  optimizer = make_optimizer(model, learning_rate=rate, table_learning_rate=0.1)
  state = init_train_state(model, optimizer, key=jax.random.key(7), memory=no_memory(4))
  train_step, eval_step = make_train_step(squares, optimizer), make_eval_step(squares)
  held_out = [Batches().at(number) for number in (1001, 1002)]
  with (
    StopOnSignal() as stop,
    Checkpoints(workdir / "checkpoints", keep=2) as checkpoints,
    open(workdir / "losses.txt", "a", buffering=1) as losses,
  ):

    def log(kind):
      return lambda step, metrics, *_: losses.write(f"{kind} {step} {metrics['loss']!r}\n")

    result = fit(
      state,
      train_step,
      Batches(rows=4, bad=BAD),
      steps=CONFIG["steps"],
      evaluate=lambda state: evaluate(eval_step, state, held_out),
      evaluate_every=CONFIG["evaluate_every"],
      checkpoints=checkpoints,
      save_every=CONFIG["save_every"],
      stop=stop,
      on_start=lambda step, extra: losses.write(f"start {step}\n"),
      on_step=log("step"),
      on_evaluation=log("mean"),
    )
  if result.stopped:
    sys.exit(0)
  assert "tensorflow" not in sys.modules
  np.savez(workdir / "final.npz", **flatten(jax.tree.map(bare, result.state)))


def bare(a):
  key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(a) if key else a)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
