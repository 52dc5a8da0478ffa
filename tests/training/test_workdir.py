"""A work directory keeps to its configuration."""

import json

import pytest

from memjax.training import ConfigMismatch, check_config

CONFIG = {"seed": 1, "model": {"dim": 8, "layers": (1, 2)}, "log": {"every": 5}, "data": {}}


def test_the_same_configuration_is_welcome_again(tmp_path):
  for _ in range(2):
    check_config(tmp_path / "new", CONFIG)
  assert json.loads((tmp_path / "new/config.json").read_text())["model"]["layers"] == [1, 2]


def test_differences_are_named(tmp_path):
  check_config(tmp_path, CONFIG)
  other = {"seed": 1, "model": {"dim": 9, "layers": (1, 2), "heads": 2}, "data": {}}
  with pytest.raises(ConfigMismatch) as error:
    check_config(tmp_path, other, may_change=("seed",))
  text = str(error.value)
  assert "model.dim: 8 there, 9 now" in text
  assert "model.heads: missing there, 2 now" in text
  assert "log.every: 5 there, missing now" in text
  assert "seed" not in text and "layers" not in text


@pytest.mark.parametrize("field", ["log", "log.every"])
def test_fields_that_may_change(tmp_path, field):
  check_config(tmp_path, CONFIG)
  other = {**CONFIG, "log": {"every": 6}}
  with pytest.raises(ConfigMismatch, match="log.every: 5 there, 6 now"):
    check_config(tmp_path, other, may_change=("lo", "every"))
  check_config(tmp_path, other, may_change=(field,))
  assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(other))


@pytest.mark.parametrize("text", ["", "[1]", '{"seed": '])
def test_a_file_that_is_no_configuration(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ConfigMismatch, match=r"config\.json is not a configuration"):
    check_config(tmp_path, CONFIG)
