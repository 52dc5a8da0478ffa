"""The comparison of memories: a cell from training to rows, what survives an interruption, and what
the numbers mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import compare
from experiments.comparison import (
  cells,
  estimate,
  memories,
  plan,
  report,
  rows,
  shell,
  tasks,
  tested,
  trained,
)
from experiments.comparison.short_conv import ShortConv
from memjax.core import join
from memjax.tasks.tmaze import TMaze

OWN = "tests.experiments.own:pair"
TASK = "tests.experiments.own:FIRST"
MAZE = tasks.Setup(
  "maze",
  "em",
  (TMaze(10, False, 1),),
  (tasks.Test("length", 14, TMaze(14, False, 1)),),
  steps=3,
  streams=(14,),
)


@pytest.fixture(scope="module")
def wanted():
  """Two memories on a task of ids and one of vectors, two learning rates."""
  names = [TASK, "tests.experiments.test_compare:MAZE"]
  return plan.cells(names, ["window", OWN], "tiny", 1, steps=6)


@pytest.fixture(scope="module")
def workdir(wanted, tmp_path_factory):
  """A folder in which the first and the last of them were run."""
  folder = tmp_path_factory.mktemp("compared")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tested, "STREAM_ENOUGH", -1.0)  # untrained: no stream is given up
    assert compare.run_cells([wanted[0], wanted[3]], folder) == []
  return folder


def _rows(cell, workdir):
  return rows.read(cells.folder(workdir) / f"{cell.name}.csv")


def test_rows_hold_what_a_table_needs(wanted, workdir):
  found = _rows(wanted[0], workdir)
  assert {row["lr"] for row in found if row["metric"] == "validation"} == {1e-3, 1e-2}
  tests = [row for row in found if row["metric"] == "acc"]
  assert [row["control"] for row in tests] == ["", "zeroed"]
  for row in tests:
    assert row["n"] == 4 and row["ci_lo"] <= row["value"] <= row["ci_hi"]
    assert row["length"] == 6 and row["state_bytes"] > 0 and row["flops_tok"] > 0
    assert row["params_total"] >= row["params_active"] > 0
    assert row["tokens"] == 6 * 4 * 6  # steps, examples, tokens
  assert not list(cells.folder(workdir).glob("*.npz"))


def test_references(wanted):
  found = {row["model"]: row["value"] for row in cells.references(wanted[0])}
  assert found == {"chance": 1 / 3, "floor": 1 / 3, "oracle": 1.0}


def test_finished_cells_are_not_run_again(wanted, workdir):
  told = []
  assert cells.run(wanted[0], workdir, told.append) and not told


def test_a_claimed_cell_is_left_to_who_has_it(wanted, workdir):
  lock = cells.folder(workdir) / f"{wanted[1].name}.lock"
  with rows.claim(lock) as mine:
    assert mine and not cells.run(wanted[1], workdir, pytest.fail)
  with rows.claim(lock) as mine:
    assert mine


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
  wanted, workdir, tmp_path, monkeypatch
):
  monkeypatch.setattr(trained, "SAVE_EVERY", 0.0)

  def stop(state):
    if state.steps == 6:  # of which the second block is not saved yet
      raise KeyboardInterrupt

  program, path = cells.trainer(wanted[0]), tmp_path / "partial.npz"
  with pytest.raises(KeyboardInterrupt):
    trained.train(program, path, stop)
  steps = []
  done = trained.train(program, path, lambda state: steps.append(state.steps))
  assert steps == [6]
  found = [r for r in _rows(wanted[0], workdir) if r["metric"] == "curve_loss"]
  best = done.best()
  assert [row["value"] for row in found] == [row["loss"][0][best] for row in done.curve]


def test_a_cell_that_fails_keeps_none_from_running(wanted, tmp_path, monkeypatch):
  asked = []

  def run(cell, folder, tell):
    asked.append(cell)
    raise ValueError("no")

  monkeypatch.setattr(cells, "run", run)
  assert compare.run_cells(wanted[:2], tmp_path) == [cell.name for cell in wanted[:2]]
  assert asked == wanted[:2]


def test_a_stream_asks_at_each_length_what_a_test_asks(wanted, workdir):
  """The same examples, seen at length 14 from a stream."""
  found = [r for r in _rows(wanted[3], workdir) if r["metric"] == "em" and r["control"] == ""]
  assert [(row["setting"], row["n"]) for row in found] == [(14, 4), (14, 4)]
  assert found[0]["value"] == found[1]["value"]


def test_zeroed_is_a_reset_before_every_segment(wanted):
  cell = wanted[0]
  runs, rests = cells.trainer(cell).start()
  one = jax.tree.map(lambda a: a[0, 0], runs.params), jax.tree.map(lambda a: a[0], rests)
  model = shell.room(join(*one), 8)
  params = jax.tree.map(lambda a: a[:, 0], runs.params)
  tester = tested.Tester(cell.setup, cell.ports, 4, 4)
  batch = tested.examples(cell.setup.tests[0].task, 4)
  reset = jnp.zeros((4, 6), bool).at[:, 4].set(True)
  run = jax.jit(lambda reset: model(batch.inputs, model.init_state(4), reset=reset)[0])
  for forget, flags in ((False, jnp.zeros_like(reset)), (True, reset)):
    result = tester(params, rests, cell.setup.tests[0], forget=forget)
    np.testing.assert_array_equal(result.predicted[0], jnp.argmax(run(flags), axis=-1))


def test_estimate(wanted, capsys):
  compiling, step = estimate.of(wanted[0])
  assert compiling >= 0 and step > 0


def test_report(wanted, workdir):
  path = report.write(wanted, workdir)
  text = path.read_text()
  assert "2 of 4 cells" in text and "Not finished" in text
  assert "<script" not in text and text.count("data:image/png") >= 4
  assert len(rows.read(workdir / "results.csv")) >= 50


def test_memories_are_of_one_size():
  size = shell.Size(parameters=40_000)
  for name in ("attention", "ntm", "elmur"):
    candidate = memories.candidate(name, size)
    make = shell.blocks(candidate, size, shell.fitting_hidden(candidate, size))
    count = shell.parameters(jax.eval_shape(lambda m=make: m(size.dim, rngs=nnx.Rngs(0))))
    assert abs(count / size.parameters - 1) < 0.02, name


def test_active_parameters_of_a_table():
  size = shell.Size()
  ports = shell.Ports(ids=True, inputs=7, classes=True, outputs=7)
  candidate = memories.candidate("product_keys", size)
  model = jax.eval_shape(lambda: shell.build(ports, candidate, size, 8, jax.random.key(0)))
  found = shell.sizes(model)
  table = size.depth * 32 * 32 * size.dim
  assert found["table"] == table and found["embedding"] == 7 * size.dim
  read = size.depth * 2 * 8 * size.dim  # heads, top_k
  assert found["active"] == found["total"] - table + read - 6 * size.dim


@pytest.mark.parametrize("budget", plan.BUDGETS)
def test_settings_of_a_task_go_in_and_out_alike(budget):
  for name in tasks.TASKS:
    plan.check_ports(tasks.setup(name, budget))


@pytest.mark.parametrize(
  "given, said",
  [
    ((["mqar"], ["lstm"]), "lstm: not one of attention"),
    ((["mqar"], ["ntm@few"]), "ntm@8192"),
    ((["sudoku"], ["ntm"]), "sudoku: not one of mqar"),
    ((["mqar"], ["tests.experiments.own:nothing"]), "nothing"),
    (([OWN], ["none"]), "neither a Task nor a Setup"),
  ],
)
def test_unknown_names(given, said):
  with pytest.raises(ValueError, match=said):
    plan.cells(*given, "tiny", 1)


def test_another_setting_is_another_cell():
  one, two = (plan.cells(["mqar"], ["none"], "tiny", 1, steps=n)[0].name for n in (3, 4))
  assert one != two


def test_short_conv_is_the_sum_over_its_last_tokens():
  conv = ShortConv(2, width=3, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(size=(2, 6, 2)).astype(np.float32)
  reset = np.zeros((2, 6), bool)
  reset[0, 4] = reset[1, 1] = True
  w, expected = np.asarray(conv.kernel[...]), np.zeros((2, 6, 2), np.float32)
  for b, begin in ((0, 4), (1, 1)):
    for t in range(6):
      for j in range(3):
        if t - j >= (begin if t >= begin else 0):
          expected[b, t] += w[j] * x[b, t - j]
  start, conv = conv.init_state(2), jax.jit(conv.__call__)
  whole, last = conv(x, start, reset=reset)
  np.testing.assert_allclose(whole, expected, rtol=1e-6, atol=1e-6)
  a, state = conv(x[:, :5], start, reset=reset[:, :5])
  b, state = conv(x[:, 5:], state, reset=reset[:, 5:])
  np.testing.assert_allclose(jnp.concatenate([a, b], axis=1), whole, rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, state, last)


def test_rows_refuse_what_has_no_column(tmp_path):
  with pytest.raises(ValueError, match="speed"):
    rows.write(tmp_path / "a.csv", [{"speed": 1}])
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_attention_recalls_what_a_window_cannot_see(tmp_path):
  """MQAR at 64 tokens, the small budget's cell at one learning rate and seed: full attention has
  0.97 at 4 pairs, chance with its memory zeroed; a window of a few tokens stays at chance."""
  wanted = plan.cells(["mqar"], ["attention", "window"], "small", 1, rates=(1e-2,))
  assert compare.run_cells(wanted, tmp_path) == []
  found = {
    (row["model"], row["control"]): row["value"]
    for cell in wanted
    for row in _rows(cell, tmp_path)
    if row["metric"] == "acc" and (row["varies"], row["setting"]) == ("pairs", 4)
  }
  assert found["attention", ""] >= 0.97
  assert max(found[key] for key in found if key != ("attention", "")) < 0.1


def test_logits_where_they_are_due_give_the_same_loss_and_too_few_are_refused():
  losses = {}
  for due in (None, 2, 5, 1):  # two pairs are asked for
    (cell,) = plan.cells(["mqar"], ["none"], "tiny", 1)
    trainer = cells.trainer(
      dataclasses.replace(cell, setup=dataclasses.replace(cell.setup, due=due))
    )
    runs, rests = trainer.start()
    if due == 1:
      with pytest.raises(ValueError, match="due=1, but an example has 2 places"):
        trainer.block(runs, rests, 0, 2)
    else:
      losses[due] = trainer.block(runs, rests, 0, 2)[1]
  # The same float32 sums over fewer places.
  np.testing.assert_allclose(losses[2], losses[None], rtol=1e-5)
  np.testing.assert_allclose(losses[5], losses[None], rtol=1e-5)
