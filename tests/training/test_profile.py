"""A trace of just the steps asked for, in files that TensorBoard and Perfetto read.

Each trace is made in a process of its own: in one that has compiled for TPUs, JAX's profiler looks
for a TPU and dies.
"""

import gzip
import json
import multiprocessing

import jax
import jax.numpy as jnp
import pytest

from memjax.training import Profile, fit, init_train_state, make_optimizer, make_train_step
from memjax.training.profile import profiling
from tests.training.tiny import Batches, no_memory, squares, tiny


def run(around_step, steps=6):
  optimizer = make_optimizer(tiny(), learning_rate=0.1)
  state = init_train_state(tiny(), optimizer, key=jax.random.key(0), memory=no_memory(4))
  step_fn = make_train_step(squares, optimizer)
  return fit(state, step_fn, Batches(4), steps=steps, around_step=around_step).state


def traced(folder):
  """Numbers of the steps in the trace."""
  (file,) = folder.glob("plugins/profile/*/*.trace.json.gz")
  events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
  return sorted(
    int(event["args"]["step_num"])
    for event in events
    if event.get("name") == "train" and "step_num" in event.get("args", {})
  )


def apart(check, *args):
  process = multiprocessing.get_context("spawn").Process(target=check, args=args)
  process.start()
  process.join()
  assert process.exitcode == 0  # what it says stands on standard error


def some_steps(folder):
  with profiling("3:5", folder) as around_step:
    profiled = run(around_step)
  assert traced(folder) == [3, 4]
  assert list(folder.glob("plugins/profile/*/*.xplane.pb"))
  for a, b in zip(jax.tree.leaves(profiled.params), jax.tree.leaves(run(None).params), strict=True):
    assert jnp.array_equal(a, b)


def more_steps_than_there_are(folder):
  with Profile("5:9", folder) as around_step:
    run(around_step)
  assert traced(folder) == [5, 6]


def test_the_steps_asked_for_and_the_same_numbers(tmp_path):
  apart(some_steps, tmp_path / "trace")


def test_a_run_that_ends_inside_is_written(tmp_path):
  apart(more_steps_than_there_are, tmp_path / "cut")


def test_off_is_nothing(tmp_path):
  with profiling("", tmp_path / "none") as around_step:
    assert around_step is None
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("steps", ["ten", "5", "7:7", "0:3", "4:-1"])
def test_other_words_are_refused(tmp_path, steps):
  with pytest.raises(ValueError, match="must be FIRST:END"):
    Profile(steps, tmp_path)
