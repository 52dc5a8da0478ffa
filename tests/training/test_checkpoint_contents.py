"""A checkpoint told without its model: names, shapes, sizes, the data's position; damaged and
foreign ones are named; its parameters become safetensors."""

import json

import jax
import numpy as np
import pytest

from memjax.core import flatten
from memjax.training import (
  CheckpointError,
  Checkpoints,
  contents,
  init_train_state,
  load_safetensors,
  make_optimizer,
)
from memjax.training.checkpoint_arrays import expected
from memjax.training.checkpoint_contents import parameter_entries
from memjax.training.export import save_entries
from tests.training.tiny import no_memory, same_bits, tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Two checkpoints of a training state: (folder, state)."""
  optimizer = make_optimizer(tiny(), learning_rate=0.1)
  state = init_train_state(tiny(), optimizer, key=jax.random.key(0), memory=no_memory(4))
  folder = tmp_path_factory.mktemp("saved")
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(4, state, {"position": {"next": 4}}, 2.5)
    checkpoints.save(8, state, {"position": {"next": 8}})
  return folder, state


def test_tells_what_was_saved(saved):
  folder, state = saved
  with Checkpoints(folder, read_only=True) as checkpoints:
    held, older = contents(checkpoints), contents(checkpoints, 4, verify=False)
  assert (held.step, held.metric, held.extra) == (8, None, {"position": {"next": 8}})
  assert (older.step, older.metric, older.extra["position"]) == (4, 2.5, {"next": 4})
  wanted = expected(state)
  assert {n: (a.shape, a.dtype) for n, a in held.arrays.items()} == {
    n: (a.shape, a.dtype) for n, a in wanted.items()
  }
  assert held.empty == () and list(held.arrays) == list(flatten(state))
  assert "cells/1/kernel" in held.group("params/") and "offset" in held.group("rest/arrays/")
  files = [path for path in (folder / "8").rglob("*") if path.is_file()]
  assert held.disk_bytes == sum(len(path.read_bytes()) for path in files)


def test_its_parameters_become_safetensors(saved, tmp_path):
  folder, state = saved
  with Checkpoints(folder, read_only=True) as checkpoints:
    held = contents(checkpoints)
    save_entries(tmp_path / "m.safetensors", parameter_entries(checkpoints, held))
  model = load_safetensors(tmp_path / "m.safetensors", jax.eval_shape(lambda: state.model))
  assert same_bits(flatten(model), flatten(state.model))


def test_empty_arrays_are_named(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"some": np.ones(3), "none": np.zeros((0, 2))})
    checkpoints.wait()
    held = contents(checkpoints)
  assert list(held.arrays) == ["some"] and held.empty == ("none",)


def test_what_is_missing_is_said(saved, tmp_path):
  folder, _ = saved
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
      contents(checkpoints)
  with Checkpoints(folder, read_only=True) as checkpoints:
    with pytest.raises(CheckpointError, match="no checkpoint of step 5; others are of step 4, 8"):
      contents(checkpoints, 5)


@pytest.mark.parametrize(
  ("harm", "message"),
  [
    ("foreign", "was not written by memjax"),
    ("flipped", r"is damaged: arrays/.* is not what was saved; others are of step 2"),
    ("info", r"is damaged: info/metadata is missing"),
    ("forged", "is damaged: info is not what memjax writes"),
  ],
)
def test_foreign_and_damaged_ones_are_named(tmp_path, harm, message):
  with Checkpoints(tmp_path) as checkpoints:
    for step in (2, 3):
      checkpoints.save(step, {"a": np.arange(1000.0) + step})
  folder = tmp_path / "3"
  if harm == "foreign":
    (folder / "checksums.json").unlink()
  if harm == "flipped":
    largest = max(
      (path for path in (folder / "arrays").rglob("*") if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
  if harm == "info":
    (folder / "info" / "metadata").unlink()
  if harm == "forged":  # checksums are right, what they vouch for is not
    from memjax.training.checkpoint_files import seal

    (folder / "info" / "metadata").write_text(json.dumps({"json": "[]"}))
    seal(folder)
  with Checkpoints(tmp_path, read_only=True) as checkpoints:
    with pytest.raises(CheckpointError, match=message):
      contents(checkpoints)
