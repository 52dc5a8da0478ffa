"""The universal Turing machine: its table, runs known from it, and memories that last or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.turing import HALT, HALTED, RULES, STATES, action, first_failure, run, survival
from memjax.tasks.turing_rules import Rules, Tape
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import first, many

CELLS, MIDDLE = 200, 100


@functools.cache
def runner():
  return jax.jit(functools.partial(run, steps=100))


def configuration(text, head):
  tape = np.zeros(CELLS, np.int32)
  tape[MIDDLE : MIDDLE + len(text)] = [int(s) for s in text]
  return jnp.asarray(tape), MIDDLE + head, 0


def test_the_table_has_29_rules():
  rules = RULES.reshape(-1, 3)
  known = rules[rules[:, 2] != HALTED]
  assert len(known) == 29 and known[:, 1].sum() == 14  # 14 to the right, 15 to the left
  assert RULES[9, 1, 2] == HALTED and (known[:, 2] < STATES).all()
  assert RULES[12].tolist() == [[0, 0, 1], [1, 1, 11]]  # u13: 0 L u2, 1 R u12


def test_a_blank_tape_fills_with_every_other_one():
  at = configuration("", 0)
  at, trace = runner()(*at)
  tape, head, state = at
  assert (int(head) - MIDDLE, int(state)) == (0, 6) and bool(trace.on.all())
  np.testing.assert_array_equal(np.flatnonzero(tape) - MIDDLE, np.arange(-7, 10, 2))
  for _ in range(4):
    at, _ = runner()(*at)
  tape, head, state = at
  assert (int(head) - MIDDLE, int(state)) == (-16, 6)
  np.testing.assert_array_equal(np.flatnonzero(tape) - MIDDLE, np.arange(-19, 22, 2))


@pytest.mark.parametrize(
  ("text", "head", "moves", "end", "low", "cells"),
  [
    ("0101010001100", 12, 7, 9, 1, "1010100011101"),
    ("1100101000000", 12, 198, 0, 0, "111010101010101010101010101"),
  ],
)
def test_runs_that_halt(text, head, moves, end, low, cells):
  at, steps = configuration(text, head), 0
  for _ in range(2):
    at, trace = runner()(*at)
    steps += int(trace.on.sum())
  tape, head, state = at
  assert int(state) == HALTED and steps == moves + 1  # the last step finds no rule
  assert int(head) == MIDDLE + end
  written = "".join(str(int(s)) for s in tape[MIDDLE + low : MIDDLE + low + len(cells)])
  assert written == cells and int(tape.sum()) == cells.count("1")


@functools.cache
def lasting(steps):
  """How long a matrix that adds values to keys lasts, with and without erasing what a key had."""
  size = 64

  def last(keys, erase, tape):
    read = lambda memory, place: (keys[place] @ memory > 0).astype(jnp.int32)  # noqa: E731

    def write(memory, place, symbol):
      key = keys[place]
      return memory + key * ((2 * symbol - 1) - erase * (key @ memory))

    memory = jnp.zeros(size)
    return first_failure(read, write, memory, tape, size // 2, 0, steps)

  return jax.jit(jax.vmap(last, (None, None, 0))), size


def test_a_memory_that_adds_fails_soon_and_one_that_erases_until_its_keys_run_out():
  steps = 100
  last, size = lasting(steps)
  tapes = np.zeros((12, size), np.int32)
  tapes[1:, 24:40] = np.random.default_rng(0).integers(0, 2, (11, 16))
  eye = np.eye(size, dtype=np.float32)
  assert (np.asarray(last(eye, 1.0, tapes)) == steps).all()
  adds = np.asarray(last(eye, 0.0, tapes))
  assert adds[0] == steps and adds.min() < steps  # some tapes ask for more than others
  few = eye[np.arange(size) % 8]  # 8 keys for all cells
  failed = int(last(few, 1.0, tapes)[0])
  _, trace = runner()(jnp.zeros(CELLS, jnp.int32), MIDDLE, 0)
  assert failed < steps and np.ptp(np.asarray(trace.head)[: failed + 1]) >= 8


def test_a_policy_survives_until_its_first_wrong_rule():
  table = jnp.asarray(RULES)
  codes = action(table[..., 0], table[..., 1], table[..., 2]).at[9, 1].set(HALT)
  policy = lambda codes, state, symbol: (codes, codes[jnp.minimum(state, 14), symbol])  # noqa: E731
  runs = jax.jit(lambda codes, tape, head: survival(policy, codes, tape, head, 0, 40))
  tape, head, _ = configuration("0101010001100", 12)
  assert bool(runs(codes, tape, head).all())  # through the halt
  _, trace = runner()(tape, head, 0)
  state, symbol = int(trace.state[3]), int(trace.symbol[3])
  met = np.asarray((trace.state == state) & (trace.symbol == symbol))[:8].argmax()
  wrong = np.asarray(runs(codes.at[state, symbol].set(codes[state, symbol] ^ 1), tape, head))
  assert wrong[:met].all() and not wrong[met:].any()


def test_a_run_asks_for_the_rules_of_the_machine():
  batch = first(SMALL["turing-rules"])
  ids, due = np.asarray(batch.inputs), np.asarray(batch.targets)
  assert len(np.unique(ids[:, :87].reshape(-1, 3), axis=0)) > 29  # other names in each example
  told = ids[0, :87].reshape(29, 3)
  table = {(s, b): a for s, b, a in told.tolist()}
  assert len(table) == 29
  for state, symbol, answer in zip(ids[0, 87::2], ids[0, 88::2], due[0, 88::2], strict=True):
    assert state == 0 or table.get((state, symbol), 78) == answer


def test_the_floors_are_what_guesses_reach():
  codes = action(RULES[..., 0], RULES[..., 1], RULES[..., 2]).reshape(-1)
  assert np.bincount(codes).max() / 30 == pytest.approx(SMALL["turing-rules"].floor)
  tape = SMALL["turing-tape"]
  batch = many(tape, 400)
  due = batch.targets[batch.mask]
  assert np.bincount(due).max() / len(due) == pytest.approx(tape.floor, abs=0.04)


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Rules(steps=0), "steps=0 must be an integer >= 1"),
    (lambda: Rules(vocab=80), "vocab=80 must be 79"),
    (lambda: Tape(cells=4, start=5), "start=5 must not exceed cells=4"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
