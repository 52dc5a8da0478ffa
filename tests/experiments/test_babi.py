"""The bAbI recipe on files made here."""

import numpy as np
import pytest

from experiments.configs import babi as recipe
from experiments.jobs import babi as job
from experiments.metrics import read
from memjax.core import replace
from memjax.tasks import babi

ROOMS, ACTORS = ("hall", "barn", "yard"), ("Ann", "Bob")


def write_task(folder, task, questions, seed):
  """Files of "where is the actor" after one to three moves of each."""
  rng = np.random.default_rng(seed)
  for split in ("train", "test"):
    lines = []
    for _ in range(questions):
      place, number = {}, 0
      for who in rng.permutation(np.repeat(ACTORS, rng.integers(1, 4))):
        number, place[who] = number + 1, str(rng.choice(ROOMS))
        lines.append(f"{number} {who} went to the {place[who]}.")
      who = str(rng.choice(ACTORS))
      lines.append(f"{number + 1} Where is {who}? \t{place[who]}\t1")
    (folder / f"qa{task}_moves_{split}.txt").write_text("\n".join(lines) + "\n")


def tiny(folder):
  config = recipe.get_config()
  config.update({"restarts": 2, "batch_size": 8})
  config.data.update({"path": str(folder), "tasks": (1, 2)})
  config.model.update({"dim": 4, "slots": 5, "hops": 2})
  for phase in ("linear", "softmax"):
    config[phase].update({"epochs": 1, "halve_every": 1})
  config.evaluation.update({"every": 1})
  config.checkpoint.update({"every": 1})
  return config


@pytest.fixture
def files(tmp_path):
  for task in (1, 2):
    write_task(tmp_path, task, 30, task)
  return tmp_path


def test_a_small_run(files, capsys):
  workdir = files / "run"
  assert job.run(tiny(files), workdir) is True
  report = (workdir / "report.md").read_text()
  assert "| qa1 |" in report and "| mean |" in report
  assert np.loadtxt(workdir / "errors.csv", delimiter=",").shape == (2, 2)
  assert "softmax  epoch 1/1" in capsys.readouterr().out
  (row,) = read(workdir / "softmax" / "metrics.csv")
  assert all(1 / 5 <= row[f"memory/hop{hop}/read_peak"] <= 1 for hop in (0, 1))
  (row,) = read(workdir / "linear" / "metrics.csv")
  assert not any(name.startswith("memory/") for name in row)


def test_batches_read_what_single_questions_read(files):
  config = tiny(files)
  questions, _, _, vocab, words = job.read_files(config)
  nets = job.build(config, vocab, words)
  net = next(iter(_unstack(nets)))
  batch = next(job.Batches(questions, 6, seed=3))
  got = job.logits(net, batch, None)
  for row in range(6):
    story = batch["sentences"][batch["story"][row]][: batch["count"][row]][::-1]
    state = net.write(story[None], net.init_state(1))
    expected = net.read(batch["question"][row][None], state)[0]
    np.testing.assert_allclose(got[row], expected, rtol=1e-4, atol=1e-5)


def test_errors_count_wrong_answers_by_task(files):
  config = tiny(files)
  questions, _, test, vocab, words = job.read_files(config)
  nets = replace(job.build(config, vocab, words), linear=True)
  found = job.errors(nets, test, size=7)
  assert found.shape == (2, 2)
  for restart, net in enumerate(_unstack(nets)):
    answers = job.logits(net, job.gather(test, np.arange(len(test))), None).argmax(axis=-1)
    for task in (1, 2):
      rows = test.task == task
      expected = np.mean(np.asarray(answers)[rows] != test.answer[rows])
      assert found[restart, task - 1] == pytest.approx(expected)


def test_batches_go_on_where_they_were(files):
  questions = job.read_files(tiny(files))[0]
  whole = job.Batches(questions, 4, seed=0)
  expected = [next(whole) for _ in range(4)][2:]
  first, second = job.Batches(questions, 4, seed=0), job.Batches(questions, 4, seed=0)
  next(first), next(first)
  second.set_state(first.get_state())
  for batch in expected:
    for name, array in next(second).items():
      np.testing.assert_array_equal(array, batch[name])


def test_the_path_is_asked_for():
  with pytest.raises(ValueError, match="config.data.path is empty"):
    job.read_files(recipe.get_config())


def test_a_missing_task_is_named(files):
  config = tiny(files)
  config.data.tasks = (1, 9)
  with pytest.raises(babi.BabiError, match="qa9_"):
    job.read_files(config)


def _unstack(nets):
  import jax

  count = jax.tree.leaves(nets)[0].shape[0]
  return (jax.tree.map(lambda a, i=i: a[i], nets) for i in range(count))
