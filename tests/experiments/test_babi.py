"""The bAbI recipe on files made here."""

import jax
import numpy as np
import optax
import pytest

from experiments.configs import babi as recipe
from experiments.jobs import babi as job
from experiments.jobs import babi_apart as apart
from experiments.metrics import read
from memjax import training
from memjax.core import replace
from memjax.tasks import babi

TASKS = (1, 2)
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
  config.data.update({"path": str(folder), "tasks": TASKS})
  config.model.update({"dim": 4, "slots": 5, "hops": 2})
  for phase in ("linear", "softmax"):
    config[phase].update({"epochs": 1, "halve_every": 1})
  config.evaluation.update({"every": 1})
  config.checkpoint.update({"every": 1})
  return config


@pytest.fixture
def files(tmp_path):
  for task in TASKS:
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


def test_a_network_for_each_task(files, capsys):
  config, workdir = tiny(files), files / "apart"
  config.enough = 1.0  # the first evaluation ends a phase
  config.linear.epochs, config.softmax.epochs = 0, 2
  (workdir / "qa1").mkdir(parents=True)  # a task that had ended is not trained again
  np.savetxt(workdir / "qa1/errors.csv", [[0.2, 0.1], [0.3, 0.7]], delimiter=",")
  assert apart.run(config, workdir) is True
  shown = capsys.readouterr().out
  assert "qa2  softmax  epoch 1/2" in shown and "epoch 2/2" not in shown and "qa1:" not in shown
  assert np.loadtxt(workdir / "errors.csv", delimiter=",").shape == (2, 2)
  assert "| qa1 | 1 | 70.0% | 50.0% | 30.0% | 70.0% |" in (workdir / "report.md").read_text()


@pytest.mark.slow
def test_an_epoch_in_one_call_is_its_steps(files):
  config = tiny(files)
  data = job.read_files(config, (1,))
  optimizer = job.clipped(optax.constant_schedule(0.01), config.clip)
  step = training.make_train_step(job.make_loss(linear=False), optimizer)
  start = lambda: training.init_train_state(  # noqa: E731
    job.build(config, data), optimizer, key=jax.random.key(0)
  )
  batches = next(apart.Epochs(data.train, 8, seed=0))
  state, _ = apart.whole(step)(start(), batches)
  expected = start()
  for index in range(len(data.train) // 8):
    asked = {name: a[index] for name, a in batches["asked"].items()}
    expected, _ = step(expected, asked | {"sentences": batches["sentences"]})
  for name, a in expected.params.items():
    np.testing.assert_allclose(state.params[name], a, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["memo", "pmi"])
def test_other_memories_answer_and_train(files, memory):
  config = tiny(files)
  config.model.update({"memory": memory, "dim": 4, "heads": 2, "dropout": 0.1})
  with pytest.raises(ValueError, match="linear.epochs=1 must be 0"):
    job.build(config, job.read_files(config, (1,)))
  config.linear.epochs = 0
  data = job.read_files(config, (1,))
  nets = job.build(config, data)
  optimizer = job.clipped(optax.constant_schedule(0.01), config.clip, "adam")
  state = training.init_train_state(nets, optimizer, key=jax.random.key(0))
  step = training.make_train_step(job.make_loss(False), optimizer)
  state, metrics = step(state, next(job.Batches(data.train, 8, seed=0)))
  assert np.isfinite(metrics["loss"]) and metrics["streak"] == 0
  net, batch = next(_unstack(state.model)), job.gather(data.test, np.arange(6))
  answers = job.logits(net, batch, None)
  assert job.errors(state.model, data.test.take(np.arange(6)))[0] == pytest.approx(
    np.mean(np.asarray(answers).argmax(axis=-1) != batch["answer"])
  )
  # Slots beyond the story count for nothing.
  more = batch | {"story": np.where(np.arange(5) < batch["count"][:, None], batch["story"], 1)}
  # Float32 sums over other numbers of slots, through several hops.
  np.testing.assert_allclose(job.logits(net, more, None), answers, rtol=1e-4, atol=1e-5)


def test_batches_read_what_single_questions_read(files):
  config = tiny(files)
  data = job.read_files(config, TASKS)
  questions, nets = data.train, job.build(config, data)
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
  data = job.read_files(config, TASKS)
  test, nets = data.test, replace(job.build(config, data), linear=True)
  found = job.errors(nets, test, size=7)
  assert found.shape == (2, 2)
  for restart, net in enumerate(_unstack(nets)):
    answers = job.logits(net, job.gather(test, np.arange(len(test))), None).argmax(axis=-1)
    for task in TASKS:
      rows = test.task == task
      expected = np.mean(np.asarray(answers)[rows] != test.answer[rows])
      assert found[restart, task - 1] == pytest.approx(expected)


def test_batches_go_on_where_they_were(files):
  questions = job.read_files(tiny(files), TASKS).train
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
    job.read_files(recipe.get_config(), TASKS)


def test_a_missing_task_is_named(files):
  with pytest.raises(babi.BabiError, match="qa9_"):
    job.read_files(tiny(files), (1, 9))


def _unstack(nets):
  count = jax.tree.leaves(nets)[0].shape[0]
  return (jax.tree.map(lambda a, i=i: a[i], nets) for i in range(count))
