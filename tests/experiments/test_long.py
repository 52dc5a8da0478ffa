"""The recipe's fields for longer texts: scaled positions, packed documents."""

import jax
import pytest

from experiments import models, runs
from experiments.configs import text as recipe
from memjax.core import submodules
from memjax.transformer import Attention, Rotary, rope_scaling
from tests.experiments.conftest import run, train_command

SCALED = {
  "": None,
  "linear": rope_scaling.PositionInterpolation(4.0),
  "ntk": rope_scaling.NTK(4.0),
  "dynamic_ntk": rope_scaling.DynamicNTK(256),
  "by_parts": rope_scaling.NTKByParts(4.0, 256),
  "yarn": rope_scaling.YaRN(4.0, 256),
  "llama3": rope_scaling.NTKByParts(4.0, 256, 1.0, 4.0),
}


def config(**fields):
  made = recipe.get_config()
  made.model.update(fields)
  return made


@pytest.mark.parametrize("method", SCALED)
def test_positions_of_the_recipe(method):
  made = config(
    rope_base=5e5, rope_method=method, rope_scale=4.0, rope_original_length=256, layers=3
  )
  model = jax.eval_shape(lambda: models.build(made.model, 256, memory="none", seed=0))
  found = {m.rotary for m in submodules(model) if isinstance(m, Attention)}
  assert found == {Rotary(5e5, SCALED[method])}


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"rope_method": "ropes"}, "config.model.rope_method='ropes' is not one of linear, ntk"),
    ({"rope_method": "yarn", "rope_scale": 4.0}, "config.model.rope_.*original_length=0"),
    ({"rope_method": "ntk", "rope_scale": 0.5}, "config.model.rope_.*scale=0.5"),
    ({"rope_base": 1.0}, "config.model.rope_.*base=1.0"),
  ],
)
def test_bad_positions(fields, words):
  with pytest.raises(ValueError, match=words):
    models.rotary(config(**fields).model)


def test_packing_of_the_recipe():
  part = config().data
  assert runs.packing(part) == {"pack": False, "separator": None}
  part.packing, part.separator = "documents", 0
  assert runs.packing(part) == {"pack": True, "separator": 0}
  part.packing = "tight"
  with pytest.raises(ValueError, match="config.data.packing='tight' is not one of"):
    runs.packing(part)


@pytest.mark.slow
def test_a_run_on_packed_documents(tmp_path):
  folder = tmp_path / "text"
  folder.mkdir()
  for i in range(30):
    (folder / f"{i}.txt").write_text(f"the memory of line {i} is {i * i % 97}.\n" * (3 + i % 5))
  fields = {"data__packing": "documents", "data__separator": 0, "model__rope_method": "yarn"}
  fields |= {"model__rope_scale": 2.0, "model__rope_original_length": 32}
  done = run(train_command(tmp_path / "run", folder / "*.txt", data__cache=tmp_path, **fields))
  assert "of a batch's places hold no text" in done.stdout
  again = run(train_command(tmp_path / "run", folder / "*.txt", data__cache=tmp_path, **fields))
  assert (tmp_path / "run" / "report.md").exists(), again.stdout
