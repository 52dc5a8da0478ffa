"""A universal Turing machine for a memory that holds its table or its tape ("Memory Augmented Large
Language Models are Computationally Universal", Schuurmans 2023, arXiv 2301.04589).

The machine is U(15,2) of Neary and Woods (2009): states u1..u15, symbols c (blank, 0) and b (1), 29
rules; u10 on b halts. `run` runs it; `first_failure` and `survival` let a memory take part and
tell how long it lasts; `memjax.tasks.turing_rules` has the tasks for models. Universality is that
of tapes that encode a program; random tapes do to see whether a memory is exact.

Differences: symbols and states are ids, no prompt is written; the paper's stored instructions are
not here, only the machine that they run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STATES, SYMBOLS = 15, 2
LEFT, RIGHT = 0, 1
HALTED = STATES  # as a state: the machine has stopped
# A line a state: what it writes, where it goes and what state follows, on c and on b.
TABLE = """
0R2 1R1  1R3 1R1  0L7 0L5  0L6 1L5  1R1 1L4  1L4 1L4  0L8 1L7  1L9 1L7
0R1 1L10  1L11 halt  0R12 1R14  0R13 1R12  0L2 1R12  0L3 0R15  0R14 1R14
"""


def _rules() -> np.ndarray:
  rows = [
    (0, RIGHT, HALTED) if rule == "halt" else (int(rule[0]), "LR".index(rule[1]), int(rule[2:]) - 1)
    for rule in TABLE.split()
  ]
  return np.asarray(rows, np.int32).reshape(STATES, SYMBOLS, 3)


RULES = _rules()  # [state, symbol]: write, move, next
HALT = STATES * SYMBOLS * 2  # as an action: the one after all others


def action(write, move, state):
  """An action's number, below `HALT` = 60."""
  return (write * 2 + move) * STATES + state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
  """A run, each array `[steps] int32`: state, head and the symbol there before each step. `on`,
  bool, is False from the step after a halt, and from where the head has left the tape."""

  state: jax.Array
  symbol: jax.Array
  head: jax.Array
  on: jax.Array


def run(tape: jax.Array, head, state, steps: int) -> tuple[tuple, Trace]:
  """Runs the machine.

  Args:
    tape: `[N] int32` of 0 and 1; it ends where it ends: give as much blank as the run needs.
    head: place on the tape.   state: 0 (u1) to 14.
  Returns:
    The last configuration `(tape, head, state)`, state `HALTED` after a halt; and the `Trace`.
  """
  start = tape, jnp.asarray(head, jnp.int32), jnp.asarray(state, jnp.int32)
  return jax.lax.scan(lambda at, _: _step(at), start, length=steps)


def _step(at: tuple) -> tuple[tuple, Trace]:
  tape, head, state = at
  on = (head >= 0) & (head < tape.shape[0]) & (state != HALTED)
  symbol = tape[head]
  write, move, after = jnp.asarray(RULES)[state, symbol]
  after_tape, after_head, after_state = _moved(at, on, write, move, after)
  return (after_tape, after_head, after_state), Trace(state, symbol, head, on)


def _moved(at: tuple, on, write, move, after) -> tuple:
  """The configuration after an action, the same if not `on`."""
  tape, head, state = at
  go = on & (after != HALTED)
  tape = tape.at[head].set(jnp.where(go, write, tape[head]))
  return tape, jnp.where(go, head + 2 * move - 1, head), jnp.where(on, after, state)


def first_failure(read: Callable, write: Callable, memory: Any, tape, head, state, steps: int):
  """How many steps a memory that holds the tape lasts, the machine being exact.

  Args:
    read: `(memory, place) -> symbol`, of places 0 .. N - 1.
    write: `(memory, place, symbol) -> memory`.
    memory: empty; it is first given the b of the `tape [N]`: what was not written is blank.
  Returns:
    The number of the first step at which the symbol read is not that of the tape, int32; `steps` if
    there is none. Not every tape asks for much: from a blank one a memory that adds each symbol to
    the cell's others, +1 and -1, never fails.
  """
  _, trace = run(tape, head, state, steps)
  fill = lambda memory, i: (_where(tape[i] == 1, write(memory, i, 1), memory), None)  # noqa: E731
  memory, _ = jax.lax.scan(fill, memory, jnp.arange(tape.shape[0]))

  def step(memory, now):
    wrong = now.on & (read(memory, now.head) != now.symbol)
    put, _, after = jnp.asarray(RULES)[now.state, now.symbol]
    return _where(now.on & (after != HALTED), write(memory, now.head, put), memory), wrong

  _, wrong = jax.lax.scan(step, memory, trace)
  return jnp.where(jnp.any(wrong), jnp.argmax(wrong), steps).astype(jnp.int32)


def _where(condition, yes, no):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def survival(policy: Callable, memory: Any, tape, head, state, steps: int) -> jax.Array:
  """Whether a policy that runs by itself is still right after each step, `[steps] bool`: tape, head
  and state are those of the machine. Their mean over tapes is the survival curve.

  Args:
    policy: `(memory, state, symbol) -> (memory, action)`, numbers as in `action`.
  """

  def step(at, _):
    memory, mine, true = at
    tape, head, state = mine
    memory, chosen = policy(memory, state, tape[head])
    after = jnp.where(chosen == HALT, HALTED, chosen % STATES)
    on = (head >= 0) & (head < tape.shape[0]) & (state != HALTED)
    mine = _moved(mine, on, chosen // (2 * STATES), chosen // STATES % 2, after)
    true, _ = _step(true)
    same = jnp.all(mine[0] == true[0]) & (mine[1] == true[1]) & (mine[2] == true[2])
    return (memory, mine, true), same

  start = tape, jnp.asarray(head, jnp.int32), jnp.asarray(state, jnp.int32)
  return jax.lax.scan(step, (memory, start, start), length=steps)[1]
