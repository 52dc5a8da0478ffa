"""The recipe of the Recurrent Memory Transformer, on a small text."""

import numpy as np

from experiments.configs import text_rmt as recipe
from experiments.jobs import text_rmt as job
from experiments.metrics import read, read_samples


def test_a_small_run(text, tmp_path, capsys):
  config = recipe.get_config()
  config.update({"steps": 3, "batch_size": 8, "sequence_length": 32})  # a row for each device
  config.data.update({"source": "text", "path": str(text), "cache": str(tmp_path / "cache")})
  config.model.update({"dim": 8, "layers": 1, "heads": 2, "hidden": 8, "segment": 8})
  config.model.memory = (0, 2)
  config.evaluation.update({"every": 2, "tokens": 128, "final_tokens": 256})
  config.checkpoint.every = 2
  assert job.run(config, tmp_path)
  printed = capsys.readouterr().out
  report = (tmp_path / "report.md").read_text()
  rows = [line.split("|")[1:-1] for line in report.splitlines() if line.startswith("| memory_")]
  assert [row[0].strip() for row in rows] == ["memory_0", "memory_2"]
  bits = np.array([[float(row[-2]), float(row[-1])] for row in rows])
  assert np.all((5 < bits) & (bits < 10))
  assert bits[0, 0] == bits[0, 1]  # nothing to zero
  assert "memory zeroed" in printed and (tmp_path / "curves.png").stat().st_size > 0
  rows = read(tmp_path / "memory_2" / "metrics.csv")
  assert rows[-1]["step"] == 3 and rows[-1]["memory/norm"] > 0 and rows[-1]["memory/change"] > 0
  assert [s["step"] for s in read_samples(tmp_path / "memory_2" / "samples.jsonl")] == [2, 3]


def test_forgetful_batches_start_anew_at_each_segment():
  batch = {"inputs": np.zeros((2, 8)), "reset": np.zeros((2, 8), bool)}
  (changed,) = job.forgetful([batch], 4)
  assert np.argwhere(changed["reset"]).tolist() == [[0, 0], [0, 4], [1, 0], [1, 4]]
  assert not batch["reset"].any()
