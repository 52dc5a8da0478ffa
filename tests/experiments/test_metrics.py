"""Where metrics go besides the CSV: Weights & Biases by a stand-in, samples, speed."""

import sys
import types

import jax
import pytest
from ml_collections import config_dict

from experiments import metrics
from experiments.configs import babi, copy, facts, text, text_rmt
from experiments.metrics import MetricsWriter, Samples, read_samples
from experiments.speed import Speed


class StandIn(types.ModuleType):
  """What is used of the package `wandb`, and what it was told."""

  def __init__(self):
    super().__init__("wandb")
    self.inits, self.rows, self.axes, self.finished = [], [], [], 0

  def init(self, **options):
    self.inits.append(options)
    return self

  def define_metric(self, name, **options):
    self.axes.append((name, options))

  def log(self, row):
    self.rows.append(row)

  def finish(self):
    self.finished += 1


def recipe(project=""):
  config = config_dict.ConfigDict({"steps": 3})
  metrics.add_fields(config)
  config.wandb.project = project
  return config


def test_weights_and_biases_gets_every_row(tmp_path, monkeypatch):
  stand_in = StandIn()
  monkeypatch.setitem(sys.modules, "wandb", stand_in)
  for start in (0, 1):  # a run, and the same one going on
    writer = MetricsWriter(tmp_path / "run" / "ntm", start=start, config=recipe("memories"))
    writer.write(start + 1, {"loss": 0.5})
    writer.close()
  assert stand_in.rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
  first, second = stand_in.inits
  assert first["id"] == second["id"] and first["resume"] == "allow" and stand_in.finished == 2
  assert (first["project"], first["name"], first["group"]) == ("memories", "run/ntm", "run")
  assert first["config"]["steps"] == 3 and ("*", {"step_metric": "step"}) in stand_in.axes


def test_it_is_off_by_default_and_its_absence_is_said(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
  MetricsWriter(tmp_path / "ntm", config=recipe()).close()
  MetricsWriter(tmp_path / "ntm").close()
  with pytest.raises(ValueError, match="'memories' needs the package wandb: pip install"):
    MetricsWriter(tmp_path / "ntm", config=recipe("memories"))


@pytest.mark.parametrize("module", [babi, copy, facts, text, text_rmt])
def test_every_recipe_has_the_fields(module):
  config = module.get_config()
  assert config.wandb.project == "" and config.profile.steps == ""


def test_samples_after_the_checkpoint_are_cut(tmp_path):
  samples = Samples(tmp_path)
  for step in (2, 4, 6):
    samples.write(step, "a ", f"line\n{step} \u2028 <b>")
  with samples.path.open("a") as file:
    file.write('{"step": 8, "prompt')
  Samples(tmp_path, start=4).write(6, "a ", "again")
  found = read_samples(samples.path)
  assert [sample["step"] for sample in found] == [2, 4, 6]
  assert found[1]["text"] == "line\n4 \u2028 <b>" and found[2]["text"] == "again"


def device(kind, cores=1):
  return types.SimpleNamespace(device_kind=kind, num_cores=cores)


def test_model_flops_utilisation():
  """8 H100s, 1e9 FLOPs a token forward, 8 million tokens a step, one step in 4 s."""
  speed = Speed(8_000_000, 1e9, [device("NVIDIA H100 80GB HBM3")] * 8)
  found = speed.metrics(4.0)
  assert found["tokens_per_second"] == 2e6
  assert found["tokens_per_second_per_chip"] == 250_000
  assert found["mfu"] == pytest.approx(3 * 1e9 * 2e6 / (8 * 989.4e12))
  assert speed.text(found) == "2,000,000 tokens/s  250,000 each chip  75.8% MFU"
  assert Speed(8, 1e9, [device("TPU7x")] * 2).metrics(1.0)["tokens_per_second_per_chip"] == 8


def test_no_utilisation_where_the_peak_is_not_known():
  speed = Speed(100, 1e6, jax.devices()[:1])
  assert speed.metrics(0.5) == {"tokens_per_second": 200, "tokens_per_second_per_chip": 200}
  assert speed.metrics(0.0) == {} and speed.text(speed.metrics(0.5)) == "200 tokens/s"
