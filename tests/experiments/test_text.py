"""The main job as a user runs it: what it prints and leaves, what it refuses, kills."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import models, runs
from experiments.configs import text as recipe
from experiments.events import Events
from experiments.metrics import MetricsWriter, read, read_samples
from tests.experiments.conftest import ROOT, TINY, command, run, train_command

NAMES = ("memory_plus", "dense_twin")


def newest_parameters(workdir, name):
  """Arrays of the newest checkpoint, by name."""
  code = (
    "import sys, json, pathlib, numpy as np\n"
    "from ml_collections import config_dict\n"
    "from experiments import runs\n"
    "from memjax.core import flatten\n"
    "import jax\n"
    "w = pathlib.Path(sys.argv[1])\n"
    "c = config_dict.ConfigDict(json.loads((w / 'config.json').read_text()))\n"
    "step, state = runs.restore(c, w, sys.argv[2], 256)\n"
    "flat = flatten({'params': state.params, 'optimizer': state.opt_state})\n"
    "flat = {name.replace('/', '|'): np.asarray(array) for name, array in flat.items()}\n"
    "np.savez(sys.argv[3], step=step, **flat)\n"
  )
  out = workdir / f"{name}.npz"
  run([sys.executable, "-c", code, str(workdir), name, str(out)])
  return dict(np.load(out))


def test_a_run_prints_and_leaves_what_the_guide_says(finished):
  workdir, printed = finished
  for words in (
    "bits/byte",
    "tokens/s",
    "of slots used",
    "FLOPs per token",
    "A sample of memory_plus",
  ):
    assert words in printed, words
  for file in ("config.json", "environment.json", "curves.png", "report.md"):
    assert (workdir / file).stat().st_size > 0
  assert (workdir / "curves.png").read_bytes()[:4] == b"\x89PNG"
  assert json.loads((workdir / "environment.json").read_text())["versions"]["jax"]
  for name in NAMES:
    rows = read(workdir / name / "metrics.csv")
    assert [row["step"] for row in rows if "train_bits_per_byte" in row] == list(range(1, 13))
    losses = [row["validation_bits_per_byte"] for row in rows if "validation_bits_per_byte" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert list((workdir / name).glob("events.out.tfevents.*"))
    samples = read_samples(workdir / name / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [4, 8, 12]
    assert all(sample["prompt"] == "def " and sample["text"] for sample in samples)
    assert all(row["tokens_per_second_per_chip"] > 0 for row in rows if row["step"] in (2, 3))
    used = [row["memory/5/slots_used"] for row in rows if "memory/5/slots_used" in row]
    assert len(used) == (3 if name == "memory_plus" else 0) and all(0 < u <= 1 for u in used)


def test_no_tensorflow_is_loaded_by_a_training_run(finished):
  assert finished[1].splitlines()[-1] == "False"


def test_generate_and_evaluate(finished, tmp_path):
  workdir, _ = finished
  greedy = ["--tokens=12", "--prompt=7: the", "--temperature=0"]
  first, again = (run([*command("generate", workdir), *greedy]).stdout for _ in range(2))
  assert first == again and first.startswith("7: the") and len(first) > len("7: the\n")
  printed = run(command("evaluate", workdir)).stdout
  assert all(name in printed for name in NAMES) and "bits/byte" in printed
  other = tmp_path / "other.txt"
  other.write_text("something else altogether\n" * 200)
  assert "memory_plus" in run(command("evaluate", workdir, data__path=other)).stdout


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model__heads_": 3}, "--config.model.heads"),
    ({"stepps": 3}, "did you mean --config.steps"),
    ({"steps": "many"}, "steps"),
    ({"model__memory": "memory_minus"}, "memory_plus"),
    ({"model__heads": 3}, "heads=3 does not divide dim=16"),
    ({"model__memory_top_k": 64}, "top_k=64 exceeds keys=8"),
    ({"model__memory_layers": "(7,)"}, r"[7]"),
    ({"optimizer__tables": "sparse"}, "is not one of auto, dense, lazy, lazy_catch_up"),
    ({"data__path": "/nowhere/*.txt"}, "/nowhere/*.txt"),
  ],
)
def test_mistakes_are_one_line(tmp_path, text, fields, message):
  done = run(train_command(tmp_path / "run", text, **fields), expect=2)
  assert message in done.stderr and "Traceback" not in done.stderr
  assert len(done.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
  ("memory", "keys", "choice", "used"),
  [
    ("memory_plus", 128, "auto", "dense"),  # the recipe as it is
    ("memory_plus", 256, "auto", "lazy"),  # 2^16 rows, 2^16 reads
    ("product_keys", 255, "auto", "dense"),
    ("memory_plus", 512, "dense", "dense"),
    ("memory_plus", 128, "rowwise_adam", "rowwise_adam"),
    ("none", 512, "auto", "dense"),
  ],
)
def test_large_tables_train_by_the_rows_that_a_step_touches(memory, keys, choice, used):
  config = recipe.get_config()
  config.model.memory_keys, config.optimizer.tables = keys, choice
  model = jax.eval_shape(lambda: models.build(config.model, 256, memory=memory, seed=0))
  assert runs.tables_choice(config, model) == used


def test_a_folder_of_another_configuration_is_refused(finished, text):
  workdir, _ = finished
  done = run(train_command(workdir, text, model__dim=32), expect=2)
  assert "model.dim" in done.stderr


def test_a_finished_run_is_not_trained_again(finished, text):
  workdir, _ = finished
  before = (workdir / "memory_plus/metrics.csv").read_text()
  run(train_command(workdir, text))
  assert (workdir / "memory_plus/metrics.csv").read_text() == before


@pytest.mark.parametrize(
  "kill",
  [  # tests/faults kills runs in every test run
    pytest.param(signal.SIGKILL, id="SIGKILL", marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow),  # tests/faults does it too
  ],
)
def test_a_killed_run_goes_on_bit_for_bit(finished, tmp_path, text, kill):
  workdir = tmp_path / "killed"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  words = train_command(workdir, text)
  process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
  metrics, deadline = workdir / "memory_plus/metrics.csv", time.monotonic() + 200
  while not [row for row in read(metrics) if row["step"] >= 5]:  # past the first checkpoint
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(kill)
  process.communicate(timeout=100)
  assert process.returncode == (0 if kill == signal.SIGTERM else -signal.SIGKILL)
  run(train_command(workdir, text))
  for name in NAMES:
    whole, resumed = (read(w / name / "metrics.csv") for w in (finished[0], workdir))
    pick = lambda rows, key: [row[key] for row in rows if key in row]  # noqa: E731
    for key in ("train_bits_per_byte", "validation_bits_per_byte"):
      assert pick(whole, key) == pick(resumed, key)
    expected, got = newest_parameters(finished[0], name), newest_parameters(workdir, name)
    assert expected.keys() == got.keys() and int(got["step"]) == TINY["steps"]
    for key in expected:
      np.testing.assert_array_equal(expected[key], got[key], err_msg=key)


def test_metrics_of_a_killed_run_are_cut_at_the_checkpoint(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in range(1, 6):
    writer.write(step, {"loss": 1 / step})
  writer.close()
  with (tmp_path / "metrics.csv").open("a") as file:
    file.write("6,")
  writer = MetricsWriter(tmp_path, start=3)
  writer.write(4, {"loss": 0.5, "more": 2.0})
  writer.close()
  rows = read(tmp_path / "metrics.csv")
  assert [row["step"] for row in rows] == [1, 2, 3, 4]
  assert rows[-1] == {"step": 4, "loss": 0.5, "more": 2.0} and rows[0] == {"step": 1, "loss": 1.0}


def test_events_are_those_that_tensorboard_reads(tmp_path):
  """The records of the file, read without the library that wrote them; a later start says so."""
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  for start, steps in ((0, (1, 2)), (1, (2,))):
    events = Events(tmp_path, start)
    for step in steps:
      events.add_scalar("loss", 1 / step, step)
    events.close()
    [path] = tmp_path.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], "little")
      found.append(Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    assert [e.step for e in found if e.session_log.status == SessionLog.START] == [2] * (start > 0)
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert scalars == [(step, "loss", 1 / step) for step in steps]
    path.unlink()
