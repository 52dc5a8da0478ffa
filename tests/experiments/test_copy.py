"""The copying recipe, tiny."""

import pytest

from experiments.configs import copy as recipe
from experiments.jobs import copy as job
from experiments.metrics import read


def tiny():
  config = recipe.get_config()
  config.update({"steps": 4, "batch_size": 4, "longest": 2, "bits": 2, "lengths": (2, 4)})
  config.model.update({"slots": 4, "width": 3, "hidden": 4})
  config.evaluation.update({"every": 2, "batches": 1})
  config.checkpoint.update({"every": 2})
  return config


def test_a_small_run(tmp_path, capsys):
  assert job.run(tiny(), tmp_path) is True
  report = (tmp_path / "report.md").read_text()
  assert "| ntm |" in report and "| lstm |" in report and "length 4" in report
  assert (tmp_path / "curves.png").stat().st_size > 1000
  assert [row["step"] for row in read(tmp_path / "ntm" / "metrics.csv")] == [2, 4]
  capsys.readouterr()
  assert job.run(tiny(), tmp_path) is True  # finished already: reported again, not trained
  assert (tmp_path / "report.md").read_text() == report


@pytest.mark.parametrize("config", [recipe.get_config(), tiny()])
def test_both_have_about_as_many_parameters(config):
  from experiments import models

  ntm, lstm = (models.parameters(model) for model in job.build(config).values())
  assert abs(ntm - lstm) < 0.05 * ntm or config.model.slots == 4
