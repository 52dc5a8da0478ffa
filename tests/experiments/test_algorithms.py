"""The recipes of small algorithms, tiny."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import models
from experiments.configs import associative_recall, priority_sort, repeat_copy
from experiments.configs import copy as recipe
from experiments.jobs import algorithms as job
from experiments.jobs.algorithm_tasks import task_of
from experiments.metrics import read
from memjax import training
from memjax.tasks import copying


def tiny(config=None):
  config = recipe.get_config() if config is None else config
  config.update({"steps": 4, "batch_size": 4, "longest": 2, "bits": 2})
  config.ntm.update({"slots": 8, "width": 3, "hidden": 4, "heads": 1})
  config.dnc.update({"slots": 2, "width": 3, "hidden": 4, "read_heads": 1})
  config.evaluation.update({"every": 2, "batches": 1})
  config.checkpoint.update({"every": 2})
  return config


def test_a_small_run(tmp_path, capsys):
  config = tiny()
  config.sizes = (2, 4)
  assert job.run(config, tmp_path) is True
  report = (tmp_path / "report.md").read_text()
  assert "| ntm |" in report and "| lstm |" in report and "| 4 |" in report.replace("  ", "")
  assert (tmp_path / "curves.png").stat().st_size > 1000
  rows = read(tmp_path / "ntm" / "metrics.csv")
  assert [row["step"] for row in rows] == [2, 4]
  assert all(1 / 8 <= row["memory/read_peak"] <= 1 for row in rows)
  assert not any("memory/read_peak" in row for row in read(tmp_path / "lstm" / "metrics.csv"))
  capsys.readouterr()
  assert job.run(config, tmp_path) is True  # finished already: reported again, not trained
  assert (tmp_path / "report.md").read_text() == report


@pytest.mark.parametrize("of", [recipe, repeat_copy, associative_recall, priority_sort])
def test_all_have_about_as_many_parameters(of):
  config = of.get_config()
  made = {name: models.parameters(model) for name, model in job.build(config).items()}
  largest = max(made[name] for name in config.memories)
  assert abs(made["lstm"] - largest) < 0.02 * largest


@pytest.mark.parametrize("names", [("rmc",), ("ntm", "rmc"), ()])
def test_an_unknown_memory_is_refused(names):
  config = tiny()
  config.memories = names
  with pytest.raises(ValueError, match="config.memories=.* must be some of ntm, dnc"):
    job.build(config)


@pytest.mark.parametrize("of", [recipe, repeat_copy, associative_recall, priority_sort])
def test_what_is_asked_is_as_large_as_its_size_says(of):
  config = tiny(of.get_config())
  task = task_of(config)
  for size in (task.watched, config.sizes[0]):
    copies = jax.jit(lambda key, size=size: task.ask(key, 3, size))(jax.random.key(0))
    assert copies.inputs.shape[2] == task.inputs and copies.targets.shape[2] == task.outputs
    assert set((copies.mask.sum(1) * task.outputs).tolist()) == {task.due(size)}
    dnc = job.with_room(job._dnc(config, task), task.stored(size))
    assert dnc.slots > task.stored(size)


def test_an_unknown_task_is_refused():
  config = recipe.get_config()
  config.task = "sort"
  with pytest.raises(ValueError, match="config.task='sort' must be one of copy, "):
    task_of(config)


def train(config, folder, name):
  """One of the recipe's models after its training."""
  with training.StopOnSignal() as stop:
    trained = job.train(config, folder / name, name, job.build(config)[name], stop)
  assert trained is not None
  return trained


@jax.jit
def wrong_when_wiped(ntm):
  """Mean wrong bits of 20 vectors when the memory is emptied before every step."""
  copies = copying.sample(jax.random.key(7), 64, shortest=20, longest=20)
  first = ntm.init_state(64)

  def step(state, x):
    state = dataclasses.replace(state, memory=first.memory)
    y, state = ntm(x[:, None], state)
    return state, y[:, 0]

  _, y = jax.lax.scan(step, first, jnp.moveaxis(copies.inputs, 1, 0))
  return copying.wrong_bits(jnp.moveaxis(y, 0, 1), copies).mean()


@pytest.mark.slow
def test_the_machine_copies_twice_the_length_it_was_trained_on(tmp_path):
  config = recipe.get_config()
  trained = train(config, tmp_path, "ntm")
  print(trained.wrong)
  assert trained.wrong[20] < 0.1 and trained.wrong[40] < 1  # of 160 and 320 bits
  assert wrong_when_wiped(trained.model) > 40  # 80 by chance


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shift"), [("lstm", 1), ("ntm", 0)])
def test_without_a_memory_that_is_addressed_by_position_it_is_not_learned(tmp_path, name, shift):
  config = recipe.get_config()
  config.steps, config.ntm.shift = 3_000, shift
  trained = train(config, tmp_path, name)
  print(trained.wrong)
  assert trained.wrong[20] > 20 and trained.wrong[40] > 80
