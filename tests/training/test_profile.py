"""A trace of just the steps asked for, in files that TensorBoard and Perfetto read."""

import gzip
import json

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


def test_the_steps_asked_for_and_the_same_numbers(tmp_path):
  with profiling("3:5", tmp_path / "trace") as around_step:
    profiled = run(around_step)
  assert traced(tmp_path / "trace") == [3, 4]
  assert list((tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb"))
  for a, b in zip(jax.tree.leaves(profiled.params), jax.tree.leaves(run(None).params), strict=True):
    assert jnp.array_equal(a, b)


def test_off_is_nothing_and_a_run_that_ends_inside_is_written(tmp_path):
  with profiling("", tmp_path / "none") as around_step:
    assert around_step is None
  with Profile("5:9", tmp_path / "cut") as around_step:
    run(around_step)
  assert traced(tmp_path / "cut") == [5, 6] and not (tmp_path / "none").exists()


@pytest.mark.parametrize("steps", ["ten", "5", "7:7", "0:3", "4:-1"])
def test_other_words_are_refused(tmp_path, steps):
  with pytest.raises(ValueError, match="must be FIRST:END"):
    Profile(steps, tmp_path)
