"""The loop: what is called when, what a restarted run repeats, and how a run ends."""

import functools
import os
import signal
import threading

import jax
import numpy as np
import pytest

from memjax.training import (
  CheckpointError,
  Checkpoints,
  StopOnSignal,
  TrainingDiverged,
  fit,
  init_train_state,
  make_optimizer,
  make_train_step,
)
from tests.training.tiny import Batches, no_memory, same_bits, squares, tiny


@functools.cache
def optimizer():
  return make_optimizer(tiny(), learning_rate=0.03)


@functools.cache
def train_step():
  return make_train_step(squares, optimizer())


def start():
  return init_train_state(tiny(), optimizer(), key=jax.random.key(1), memory=no_memory(4))


class Log:
  """Everything that `fit` tells, in order, and the losses by step."""

  def __init__(self, stop_at: int = 0, fail_at: int = 0):
    self.events, self.losses, self.stop_at, self.fail_at = [], {}, stop_at, fail_at

  def on_start(self, step, extra):
    self.events.append(("start", step, extra))

  def on_step(self, step, metrics):
    self.losses[step] = metrics["loss"]
    assert type(metrics["loss"]) is float and metrics["seconds"] > 0
    if step == self.stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    if step == self.fail_at:
      raise KeyboardInterrupt

  def on_evaluation(self, step, metrics, is_best):
    self.events.append(("evaluation", step, metrics["loss"], is_best))

  def on_checkpoint(self, step, seconds):
    self.events.append(("checkpoint", step))

  def names(self):
    return [event[:2] for event in self.events]


def run(log, steps=12, batches=None, evaluations=None, **options):
  options.setdefault("evaluate_every", 4)
  options.setdefault("save_every", 5)
  callbacks = {name: getattr(log, name) for name in dir(log) if name.startswith("on_")}
  evaluate = None if evaluations is None else lambda state: {"loss": evaluations[int(state.step)]}
  batches = batches or Batches()
  return fit(start(), train_step(), batches, steps=steps, evaluate=evaluate, **callbacks, **options)


def test_the_order_of_events(tmp_path):
  """A new best evaluation is saved at once; the last step is evaluated and saved."""
  log = Log()
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    result = run(
      log, steps=13, evaluations={4: 3.0, 8: 5.0, 12: 4.0, 13: 6.0}, checkpoints=checkpoints
    )
  assert log.events == [
    ("start", 0, {}),
    ("evaluation", 4, 3.0, True),
    ("checkpoint", 4),
    ("checkpoint", 5),
    ("evaluation", 8, 5.0, False),
    ("checkpoint", 10),
    ("evaluation", 12, 4.0, False),
    ("evaluation", 13, 6.0, False),
    ("checkpoint", 13),
  ]
  assert sorted(log.losses) == list(range(1, 14))
  assert (result.step, result.best, result.best_step, result.stopped) == (13, 3.0, 4, False)
  assert result.seconds > 0 and int(result.state.step) == 13
  assert sorted(path.name for path in tmp_path.iterdir()) == ["13", "4"]  # the last, the best


def test_without_checkpoints_any_iterator_will_do():
  log, batches = Log(), Batches()
  result = run(log, steps=3, batches=iter([batches.at(n) for n in (1, 2, 3)]))
  assert log.names() == [("start", 0)] and result.best is None and int(result.state.step) == 3


def test_a_run_in_pieces_is_the_run_in_one(tmp_path):
  """Stopped by a signal, by an error between saves, at a save; the last start finds it finished."""
  whole, evaluations = Log(), {4: 4.0, 8: 3.0, 12: 2.0}
  wanted = run(whole, evaluations=evaluations, extra=lambda: {"of": 1})
  pieces = [Log(stop_at=3), Log(fail_at=7), Log(stop_at=9), Log(), Log()]
  for log in pieces:
    with Checkpoints(tmp_path) as checkpoints:
      try:
        got = run(log, evaluations=evaluations, checkpoints=checkpoints, extra=lambda: {"of": 7})
      except KeyboardInterrupt:
        continue
  starts = [log.events[0][1] for log in pieces]
  # The report is a step late: the signal that comes with the report of step 3 meets step 4.
  assert starts == [0, 4, 5, 10, 12]
  assert pieces[1].events[0] == ("start", 4, {"of": 7})
  for log in pieces:
    assert log.losses == {step: whole.losses[step] for step in log.losses}
  assert set().union(*(log.losses for log in pieces)) == set(whole.losses)
  assert same_bits(got.state, wanted.state)
  assert (got.best, got.best_step, got.stopped) == (2.0, 12, False)
  assert pieces[-1].losses == {} and got.seconds > 0


def test_a_run_goes_on_from_before_a_damaged_checkpoint(tmp_path):
  whole, first, second = Log(), Log(stop_at=10), Log()
  wanted = run(whole)
  with Checkpoints(tmp_path) as checkpoints:
    run(first, checkpoints=checkpoints)
    assert checkpoints.steps == [5, 10]
  (tmp_path / "10/arrays/_METADATA").write_text("{}")
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.warns(RuntimeWarning, match="step 5 is used instead"):
      got = run(second, checkpoints=checkpoints)
    assert checkpoints.steps == [5, 10, 12]
  assert second.losses == {step: whole.losses[step] for step in range(6, 13)}
  assert same_bits(got.state, wanted.state)


def test_a_signal_saves_and_returns(tmp_path):
  log = Log(stop_at=2)
  before = signal.getsignal(signal.SIGTERM)
  with Checkpoints(tmp_path) as checkpoints:
    result = run(log, checkpoints=checkpoints)
    assert checkpoints.steps == [result.step] == [3]
  assert result.stopped and log.events[-1] == ("checkpoint", 3)
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_before_the_first_step():
  with StopOnSignal() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    result = run(Log(), stop=stop)
  assert result.stopped and result.step == 0


def test_signals_are_left_alone_outside_of_the_main_thread():
  results = []
  thread = threading.Thread(target=lambda: results.append(run(Log(), steps=2)))
  thread.start()
  thread.join()
  assert results[0].step == 2


def test_bad_steps_are_reported_and_many_in_a_row_end_the_run(tmp_path):
  few = Log()
  result = run(few, batches=Batches(bad={3, 4, 6, 7}), max_bad_steps=3)
  assert [step for step, loss in few.losses.items() if np.isnan(loss)] == [3, 4, 6, 7]
  assert int(result.state.skipped) == 4
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TrainingDiverged, match="last 3 steps, up to step 9, .* not finite"):
      run(Log(), batches=Batches(bad={7, 8, 9}), max_bad_steps=3, checkpoints=checkpoints)
    checkpoints.wait()
    assert checkpoints.steps == [5]


def test_a_streak_goes_on_after_a_restart(tmp_path):
  batches = functools.partial(Batches, bad={5, 6, 7})
  with Checkpoints(tmp_path) as checkpoints:
    run(Log(stop_at=5), batches=batches(), max_bad_steps=3, checkpoints=checkpoints)
    with pytest.raises(TrainingDiverged, match="last 3 steps, up to step 7"):
      run(Log(), batches=batches(), max_bad_steps=3, checkpoints=checkpoints)


def test_a_failed_save_ends_the_run(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    error = CheckpointError("the disk is full")

    def check():
      raise error

    monkeypatch.setattr(checkpoints, "check", check)
    with pytest.raises(CheckpointError, match="the disk is full"):
      run(Log(), checkpoints=checkpoints)


def test_batches_that_end_too_soon(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(RuntimeError, match="ended after 6 of 12 steps"):
      run(Log(), batches=Batches(last=6), checkpoints=checkpoints)
    assert checkpoints.steps == [5, 6]


def test_an_evaluation_that_is_nan_is_never_the_best():
  log = Log()
  result = run(log, evaluations={4: float("nan"), 8: 2.0, 12: float("nan")})
  assert [event[3] for event in log.events[1:]] == [False, True, False]
  assert (result.best, result.best_step) == (2.0, 8)


def test_arguments_are_checked(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TypeError, match="list_iterator has no get_state"):
      run(Log(), batches=iter([]), checkpoints=checkpoints)
  with pytest.raises(ValueError, match="save_every=-1"):
    run(Log(), save_every=-1)


def test_it_ends_early_once_an_evaluation_satisfies_and_stays_ended(tmp_path):
  log = Log()
  options = {"evaluations": {4: 3.0, 8: 1.0, 12: 0.0}, "until": lambda metrics: metrics["loss"] < 2}
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    result = run(log, steps=100, checkpoints=checkpoints, **options)
    assert (result.step, result.best, result.stopped) == (8, 1.0, False)
    assert log.names()[-2:] == [("evaluation", 8), ("checkpoint", 8)]
    again = Log()
    repeated = run(again, steps=100, checkpoints=checkpoints, **options)
  assert (repeated.step, repeated.stopped, again.losses) == (8, False, {})
  assert same_bits(repeated.state, result.state)


def test_a_checkpoint_that_fit_did_not_save_is_named(tmp_path):
  optimizer = make_optimizer(tiny(), learning_rate=0.1)
  state = init_train_state(tiny(), optimizer, key=jax.random.key(0), memory=no_memory(4))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {"best": None})
    with pytest.raises(
      CheckpointError, match="step 1 was not saved by fit: it holds no 'best_step'"
    ):
      fit(state, None, Batches(), steps=2, checkpoints=checkpoints)
