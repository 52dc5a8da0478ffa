"""The training script in two processes that talk to each other: what one process with the same
global batch computes, checkpoints that go from any number of them to any mesh, one record of it."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import config_dict

from experiments import meshes, runs
from experiments.configs import text as recipe
from experiments.metrics import read
from memjax import training
from memjax.core import flatten
from tests.experiments.conftest import ROOT, command, run, train_command

NAME = "memory_plus"
ONE_LAYER = {
  "steps": 4, "model__layers": 1, "model__memory_layers": "(0,)", "evaluation__every": 2,
  "evaluation__tokens": 128, "evaluation__final_tokens": 128, "checkpoint__every": 2,
  "sample__tokens": 1, "sample__evaluation_tokens": 1, "twin__train": False,
}  # fmt: skip
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "COLUMNS": "120", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

# Long enough that a signal sent after the third step comes before the last on any machine; at rates
# so low that sums in another order stay small until then.
LONGER = {
  "steps": 24, "evaluation__every": 8, "checkpoint__every": 8, "twin__train": False,
  "sample__tokens": 2, "sample__evaluation_tokens": 0, "optimizer__learning_rate": 1e-3,
  "optimizer__table_learning_rate": 1e-2,
}  # fmt: skip
OPTIMISED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def start(words, count: int = 2, **environment) -> list[subprocess.Popen]:
  """One command in `count` processes that find each other."""
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
  where = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
  env = {**os.environ, **ENVIRONMENT, **environment}
  return [
    subprocess.Popen(
      [*words, *where, f"--process_id={i}"], cwd=ROOT, env=env, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for i in range(count)
  ]  # fmt: skip


def finish(processes, expect: int = 0) -> list[tuple[str, str]]:
  """What each printed; all ended with the status `expect`."""
  said = [process.communicate(timeout=400) for process in processes]
  for process, (out, error) in zip(processes, said, strict=True):
    assert process.returncode == expect, f"{out[-2000:]}\n{error[-3000:]}"
  return said


def losses(workdir, key: str = "train_bits_per_byte") -> dict[int, float]:
  rows = read(workdir / NAME / "metrics.csv")
  return {int(row["step"]): row[key] for row in rows if key in row}


def config_of(workdir, **mesh) -> config_dict.ConfigDict:
  config = config_dict.ConfigDict(json.loads((workdir / "config.json").read_text()))
  config.mesh.update(mesh)
  return config


def parameters(state) -> dict:
  found = flatten({"params": state.params, "optimizer": state.opt_state, "step": state.step})
  return jax.device_get(found)


def close(got: dict, wanted: dict, rtol: float = 2e-5, atol: float = 2e-6) -> None:
  assert got.keys() == wanted.keys()
  for name in wanted:
    np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=atol, err_msg=name)


def in_this_process(monkeypatch, config, devices: int):
  """Losses of all steps, the last state and the position in the data: the run on so many devices of
  this process."""
  used = jax.devices()[:devices]
  monkeypatch.setattr(jax, "devices", lambda: used)
  corpus = runs.load_corpus(config.data)
  state, optimizer, shardings = runs.set_up(config, corpus.vocab_size, config.model.memory)
  step = training.make_train_step(training.language_model_loss(), optimizer, shardings=shardings)
  batches = corpus.train_batches(
    sequence_length=config.sequence_length, batch_size=config.batch_size, seed=config.seed
  )
  place, found = meshes.placing(config), {}
  for number in range(1, config.steps + 1):
    state, metrics = step(state, place(next(batches)))
    found[number] = runs.bits_per_byte(float(metrics["nats"]), corpus, "train")
  return found, state, batches.get_state()


def test_two_processes_train_as_one_and_what_they_save_goes_onto_any_mesh(
  tmp_path, text, monkeypatch
):
  workdir = tmp_path / "run"
  said = finish(start(train_command(workdir, text, **ONE_LAYER)))
  assert "FLOPs per token" in said[0][0] and "bits/byte" not in said[1][0]
  for file in ("config.json", "environment.json", "curves.png", "report.md"):
    assert (workdir / file).stat().st_size > 0
  assert len(list((workdir / NAME).glob("events.out.tfevents.*"))) == 1

  alone, state, position = in_this_process(monkeypatch, config_of(workdir), devices=2)
  got = losses(workdir)
  assert got.keys() == alone.keys()
  np.testing.assert_allclose(list(got.values()), list(alone.values()), rtol=2e-6)

  monkeypatch.undo()
  mesh = config_of(workdir, data=2, fsdp=2, model=2)
  step, restored = runs.restore(mesh, workdir, NAME, 256)
  assert step == 4
  cut = [a for a in restored.params.values() if not a.is_fully_replicated]
  assert sum(a.size for a in cut) > 0.5 * sum(a.size for a in restored.params.values())
  close(parameters(restored), parameters(state))
  with training.Checkpoints(workdir / NAME / "checkpoints", read_only=True) as checkpoints:
    assert checkpoints.info(4)["extra"]["position"] == position
    assert checkpoints.steps == [2, 4]


def test_a_process_that_does_not_come_is_named(tmp_path, text):
  words = train_command(tmp_path / "run", text, **ONE_LAYER)
  processes = start([*words, "--start_timeout=2"], count=3)
  processes[1].kill()
  processes[1].communicate()
  for _, error in finish([processes[0], processes[2]], expect=75):
    assert "process 1 of 3 did not come within 2 s" in error and "Traceback" not in error


def test_flags_that_lack_are_refused(tmp_path, text):
  words = train_command(tmp_path / "run", text, **ONE_LAYER)
  done = run([*words, "--process_id=1"], expect=2)
  assert "--coordinator is missing" in done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
  """A finished run of one process with two devices."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  run(train_command(workdir, text, **LONGER), JAX_NUM_CPU_DEVICES="2", **OPTIMISED)
  return workdir


def in_part(workdir, text, of_two: bool, mesh: dict, until: int = 3):
  """Trains until a step after `until` and is preempted; by two processes or one of two devices."""
  words = [*train_command(workdir, text, **LONGER), *mesh_flags(mesh)]
  if of_two:
    processes = start(words, **OPTIMISED)
  else:
    env = {**os.environ, **ENVIRONMENT, **OPTIMISED, "JAX_NUM_CPU_DEVICES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(words, cwd=ROOT, env=env, text=True, **pipes)]
  deadline = time.monotonic() + 300
  while not [step for step in losses(workdir) if step >= until]:
    assert all(p.poll() is None for p in processes), finish(processes)
    assert time.monotonic() < deadline
    time.sleep(0.01)
  processes[-1].send_signal(signal.SIGTERM)
  said = finish(processes)
  assert "the state is saved" in said[0][0]
  with training.Checkpoints(workdir / NAME / "checkpoints", read_only=True) as checkpoints:
    last = checkpoints.steps[-1]
    assert until <= last < LONGER["steps"]
    assert last == max(losses(workdir))
    assert checkpoints.info(last)["extra"]["position"]["next_batch"] == last


def mesh_flags(mesh: dict) -> list[str]:
  return [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("of_two", "first", "then"),
  [
    (True, {}, {}),
    (False, {}, {"data": 1, "fsdp": 2}),
    (True, {"data": 1, "fsdp": 2}, {"data": 1, "model": 2}),
    (True, {"data": 1, "model": 2}, {}),
  ],
)
def test_a_preempted_run_goes_on_with_other_processes_on_another_mesh(
  tmp_path, text, whole, of_two, first, then
):
  workdir = tmp_path / "run"
  in_part(workdir, text, of_two, first)
  words = [*train_command(workdir, text, **LONGER), *mesh_flags(then)]
  if of_two:
    run(words, JAX_NUM_CPU_DEVICES="2", **OPTIMISED)
  else:
    finish(start(words, **OPTIMISED))
  for key in ("train_bits_per_byte", "validation_bits_per_byte"):
    got, wanted = losses(workdir, key), losses(whole, key)
    assert got.keys() == wanted.keys() and len(got) >= 3
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=2e-5)
  on_eight = {"data": 2, "fsdp": 2, "model": 2}
  ends = (runs.restore(config_of(w, **on_eight), w, NAME, 256)[1] for w in (workdir, whole))
  # Sums over devices round otherwise, and Adam makes more of it: as in test_layouts.py.
  close(*map(parameters, ends), rtol=1e-4, atol=2e-5)
  said = finish(start(command("evaluate", workdir), **OPTIMISED))
  printed, nothing = ([line for line in out.splitlines() if "Gloo" not in line] for out, _ in said)
  alone = run(command("evaluate", workdir), **OPTIMISED).stdout.splitlines()
  assert printed == alone and len(alone) > 3 and not nothing


@pytest.mark.slow
def test_two_processes_carry_a_state_as_one_does(tmp_path, text):
  fields = {
    "steps": 6, "batch_size": 4, "sequence_length": 32, "model__dim": 16, "model__layers": 1,
    "model__heads": 2, "model__hidden": 32, "model__segment": 8, "model__memory": "(2,)",
    "evaluation__every": 3, "evaluation__tokens": 256, "evaluation__final_tokens": 256,
    "checkpoint__every": 3, "data__source": "text", "data__path": text,
    "data__cache": text.parent / "cache",
  }  # fmt: skip

  def words(workdir):
    made = command("train", workdir, **fields)
    return [*made[:3], f"--config={ROOT / 'experiments/configs/text_rmt.py'}", *made[3:]]

  run(words(tmp_path / "one"), JAX_NUM_CPU_DEVICES="2")
  finish(start(words(tmp_path / "two"), **OPTIMISED))
  one, two = (read(tmp_path / name / "memory_2/metrics.csv") for name in ("one", "two"))
  for key in ("train_bits_per_byte", "validation_bits_per_byte"):
    wanted, got = ([row[key] for row in rows if key in row] for rows in (one, two))
    assert len(wanted) == len(got) >= 2 and all(map(math.isfinite, got))
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


def test_a_mesh_that_the_model_cannot_lie_on_is_refused_with_the_reason():
  config = recipe.get_config()
  config.model.heads, config.mesh.model, config.mesh.data = 4, 8, 1
  with pytest.raises(ValueError, match="heads=4 is not divisible by model=8"):
    runs.set_up(config, 256, "none")
  config = recipe.get_config()
  config.batch_size = 6
  with pytest.raises(ValueError, match="batch=6 is not divisible by data=8"):
    runs.set_up(config, 256, "none")


ROWS = """
import sys
import jax
import numpy as np
from ml_collections import config_dict
from experiments import distributed, meshes
from absl import flags

distributed.define_flags()
flags.FLAGS(sys.argv)
distributed.start()
whole = np.arange(64).reshape(8, 8)
for sizes in ({}, {"data": 2, "context": 2}, {"data": 1, "context": 4}, {"data": 1, "model": 4}):
  config = config_dict.ConfigDict()
  meshes.add_fields(config)
  config.mesh.update(sizes)
  share = meshes.share(config)
  own = np.split(whole, share["shard_count"])[share["shard_index"]]
  placed = meshes.placing(config)({"x": own})["x"]
  assert placed.shape == whole.shape
  for piece in placed.addressable_shards:
    np.testing.assert_array_equal(piece.data, whole[piece.index])
  print(share["shard_index"], share["shard_count"])
"""


@pytest.mark.slow
def test_every_device_gets_its_piece_of_what_its_process_reads():
  said = finish(start([sys.executable, "-c", ROWS], JAX_NUM_CPU_DEVICES="2"))
  found = [[line for line in out.splitlines() if "Gloo" not in line] for out, _ in said]
  assert found == [["0 2", "0 2", "0 1", "0 1"], ["1 2", "1 2", "0 1", "0 1"]]
