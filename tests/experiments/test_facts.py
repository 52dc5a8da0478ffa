"""The recipe of facts, tiny."""

import jax
import numpy as np
import pytest

from experiments import models
from experiments.configs import facts as recipe
from experiments.jobs import facts as job
from experiments.metrics import read
from memjax.tasks import facts


def tiny(**model):
  config = recipe.get_config()
  config.update(
    {"exposures": 2, "batch_size": 32, "people": 16, "names": (6, 6), "choices": (4, 8)}
  )
  config.model.update({"dim": 8, "hidden": 24, "memory_keys": (4,), "top_k": 2, "query_dim": 4})
  config.model.update({"memories": ("memory_plus",), **model})
  config.optimizer.update({"warmup": 1})
  config.evaluation.update({"every": 1})
  config.checkpoint.update({"every": 1})
  return config


def test_a_small_run(tmp_path, capsys):
  assert job.run(tiny(), tmp_path) is True
  report = (tmp_path / "report.md").read_text()
  names = ["dense", "memory_plus_4"]
  assert all(f"| {name} |" in report for name in [*names, "chance"])
  assert (tmp_path / "facts.png").stat().st_size > 1000
  assert [row["exposures"] for row in read(tmp_path / "dense" / "metrics.csv")] == [1, 2]
  (row, *_) = read(tmp_path / "memory_plus_4" / "metrics.csv")
  assert 0 < row["memory/2/slots_used"] <= 1
  capsys.readouterr()
  assert job.run(tiny(), tmp_path) is True  # finished already: reported again, not trained
  assert (tmp_path / "report.md").read_text() == report


def test_all_spend_the_same_flops_on_a_token():
  config = tiny(memories=("product_keys", "peer"), memory_keys=(2, 4))
  made = job.build(config)
  spent = {name: models.flops_per_token(model, 3) for name, model in made.items()}
  assert len(spent) == 1 + len(config.model.memories) * len(config.model.memory_keys)
  unit = 2 * 2 * config.model.dim + 20  # of one unit of a feed-forward layer
  assert max(spent.values()) - min(spent.values()) <= 2 * unit, spent


def test_what_has_not_been_trained_holds_nothing():
  config = tiny()
  world = job.world_of(config)
  model = job.build(config)["memory_plus_4"]
  for people in facts.sample(jax.random.key(0), world):
    assert job.examine(model, people, config).bits == 0


def test_every_fact_comes_once_an_exposure_whatever_the_start():
  lessons = job.Lessons(32, 8, seed=0)
  batches = [next(lessons)["index"] for _ in range(8)]
  first, second = np.concatenate(batches[:4]), np.concatenate(batches[4:])
  assert sorted(first) == sorted(second) == list(range(32)) and (first != second).any()
  again = job.Lessons(32, 8, seed=0)
  again.set_state({"next": 5})
  np.testing.assert_array_equal(next(again)["index"], batches[5])


def test_a_memory_dearer_than_the_dense_model_is_refused():
  with pytest.raises(ValueError, match="memory_plus with 4 keys costs more FLOPs .*hidden=2"):
    job.build(tiny(hidden=2))


@pytest.mark.slow
def test_memories_hold_more_at_equal_flops(tmp_path):
  from memjax import training

  config = recipe.get_config()
  config.people, config.exposures = 4096, 60
  config.model.memories, config.model.memory_keys = ("product_keys",), (64,)
  made, held = job.build(config), {}
  spent = [models.flops_per_token(model, 3) for model in made.values()]
  assert max(spent) < 1.005 * min(spent)
  with training.StopOnSignal() as stop:
    for name, model in made.items():
      trained = job.train(config, tmp_path / name, name, model, stop)
      held[name] = trained.known.bits
      assert trained.strangers.bits == 0 and trained.strangers.accuracy < 0.04
  print(held)
  assert held["product_keys_64"] > 1.1 * held["dense"]
