"""The command that prints what a checkpoint holds and exports its parameters."""

import jax
import numpy as np
from ml_collections import config_dict
from safetensors.numpy import load_file

from experiments import models
from experiments.configs import text as recipe
from memjax.training import load_safetensors
from tests.experiments.conftest import TINY, command, run


def test_prints_and_exports(finished, tmp_path):
  workdir, _ = finished
  file = tmp_path / "model.safetensors"
  options = ["--model=memory_plus", "--step=8", f"--export={file}"]
  printed = run([*command("checkpoint", workdir), *options]).stdout
  assert "dense_twin: steps " in printed and "12 (" in printed and "best" in printed
  assert "memory_plus, step 8: metric " in printed and "checksums are right" in printed
  values = [line.split() for line in printed.splitlines() if "params/shared/values" in line]
  assert values == [["params/shared/values", "[64,", "16]", "float32", "4,096"]]
  assert '"next_batch": 8' in printed  # the position in the data
  model = jax.eval_shape(lambda: build())
  numbers = f"{models.parameters(model):,}"
  totals = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
  assert totals["parameters"][-2] == numbers and "optimiser" in totals
  loaded = load_safetensors(file, model)
  assert set(load_file(file)) and all(np.isfinite(a).all() for a in jax.tree.leaves(loaded))


def build():
  config = config_dict.ConfigDict(recipe.get_config())
  config.update_from_flattened_dict({k: v for k, v in TINY.items() if k.startswith("model.")})
  return models.build(config.model, 256, memory="memory_plus", seed=0)


def test_mistakes_are_one_line(finished, tmp_path):
  workdir, _ = finished
  done = run([*command("checkpoint", workdir), "--step=5"], expect=2)
  assert (
    done.stderr.startswith("error: ") and "no checkpoint of step 5; others are of" in done.stderr
  )
  done = run(command("checkpoint", tmp_path), expect=2)
  assert "holds no MODEL/checkpoints" in done.stderr and "Traceback" not in done.stderr
