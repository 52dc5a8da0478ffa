"""Retention after injection, the protocol of "MEMORYLLM" (Wang et al. 2024, arXiv 2402.04624): how
long does a memory keep what it was told, while other things are told to it?

    write = lambda state, tokens: memory state after tokens [B, L]
    ask = lambda state, tokens: ids [B], answers to questions [B, Q]; its writes are dropped
    parts = split_off(task, task.sample(0, TEST, jnp.arange(B)))
    others = split_off(task, task.sample(0, TEST, B + jnp.arange(T))).context
    hits = curve(write, ask, start, parts, others)               # [T + 1, B]; baseline(...) without

The memory starts from the same state for every sample: its context is written, then unrelated ones,
the same for all samples, and after each the question is asked. `held` tells a whole
set of contexts, then asks about each; `integrity` tells ever new ones and asks the newest.

`random_replacement`, `oldest_first` and `spilled` are what such curves should be.

Differences: the authors' script restores the memory between samples only if told to, here a sample
cannot see another's; a hit is the due id, not a text that contains the answer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from memjax.tasks.task import Batch

Write = Callable[[Any, jax.Array], Any]
Ask = Callable[[Any, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
  """Contexts `[B, L]`, a question about each `[B, Q]`, and the id that is due at its end `[B]`."""

  context: jax.Array
  question: jax.Array
  answer: jax.Array


def split_off(task, batch: Batch) -> Parts:
  """Cuts examples before their question, at `task.told`.

  Raises:
    ValueError: something else is due than one id at the end.
  """
  told = getattr(task, "told", None)
  if not isinstance(told, int) or batch.inputs.ndim != 2:
    raise ValueError(f"{type(task).__name__} has no tokens that are `told` before a question")
  if not isinstance(batch.mask, Tracer):
    if np.asarray(batch.mask)[:, :-1].any() or not np.asarray(batch.mask)[:, -1].all():
      raise ValueError(f"{task} must ask one question, whose answer is due at the last token alone")
  return Parts(batch.inputs[:, :told], batch.inputs[:, told:], batch.targets[:, -1])


def curve(
  write: Write, ask: Ask, state, parts: Parts, others: jax.Array, *, before: int = 0
) -> jax.Array:
  """Whether each sample's question is answered after each injection.

  Args:
    state: of B samples, as restored for each.
    others: `[T, L']`, unrelated contexts, in the order of injection.
    before: so many of them are written before the sample's own context (the authors' "begin", 0,
      is the default; T is their "end").

  Returns:
    `[T - before + 1, B] bool`: right after the own context, then after each further one.

  Raises:
    ValueError: `before` is not in 0..T.
  """
  if not 0 <= before <= len(others):
    raise ValueError(f"before={before} must lie in 0..{len(others)}, the contexts of others")
  state = _write_all(write, state, others[:before], len(parts.answer))
  return _follow(write, ask, write(state, parts.context), parts, others[before:])


def baseline(write: Write, ask: Ask, state, parts: Parts, others: jax.Array) -> jax.Array:
  """`curve` without the own contexts: what is right by chance, or was known before."""
  return _follow(write, ask, state, parts, others)


def _follow(write: Write, ask: Ask, state, parts: Parts, others: jax.Array) -> jax.Array:
  """Asks now, and after each other context is written; `[len(others) + 1, B]`."""

  def step(state, other):
    state = write(state, _for_all(other, len(parts.answer)))
    return state, ask(state, parts.question) == parts.answer

  first = ask(state, parts.question) == parts.answer
  _, later = jax.lax.scan(step, state, others)
  return jnp.concatenate([first[None], later])


def _for_all(tokens: jax.Array, batch: int) -> jax.Array:
  return jnp.broadcast_to(tokens, (batch, *tokens.shape))


def _write_all(write: Write, state, others: jax.Array, batch: int):
  step = lambda state, tokens: (write(state, _for_all(tokens, batch)), None)  # noqa: E731
  return jax.lax.scan(step, state, others)[0]


def held(write: Write, ask: Ask, state, parts: Parts) -> jax.Array:
  """Writes contexts one after another, then asks about all of them.

  Args:
    state: of one sample, B = 1; `write` and `ask` get one row at a time.
    parts: T contexts in the order of writing, in place of B.

  Returns:
    `[T] bool` by age, the newest first; its sum is the number of facts held.
  """
  one = lambda x: x[:, None]  # noqa: E731
  state = jax.lax.scan(lambda s, c: (write(s, c), None), state, one(parts.context))[0]
  answers = jax.lax.map(lambda question: ask(state, question)[0], one(parts.question))
  return (answers == parts.answer)[::-1]


def integrity(
  write: Write, ask: Ask, state, make: Callable[[jax.Array], Parts], writes: int, every: int
) -> jax.Array:
  """Tells ever new contexts and asks about the newest now and then; it must stay right.

  Args:
    make: the contexts of a number `[] int32` from 0 on, for B samples: `Parts`.
    writes: how many are told.   every: so many between two questions; the last asks if it divides.

  Returns:
    `[writes // every, B] bool`.

  Raises:
    ValueError: `every` is not in 1..writes.
  """
  if not 1 <= every <= writes:
    raise ValueError(f"every={every} must lie in 1..writes={writes}")
  tell = lambda i, state: write(state, make(i).context)  # noqa: E731

  def stretch(state, number):
    state = jax.lax.fori_loop(number * every, (number + 1) * every, tell, state)
    newest = make((number + 1) * every - 1)
    return state, ask(state, newest.question) == newest.answer

  return jax.lax.scan(stretch, state, jnp.arange(writes // every))[1]


def random_replacement(t, slots: int, replaced: int, *, start: float = 1.0, floor: float = 0.0):
  """Law of a memory that replaces slots drawn evenly, `replaced` of all `slots` at each write:
  after t writes floor + (start - floor) (1 - replaced / slots)^t of the facts are right, if each
  lies in one slot alone.

  Args:
    t: writes since, a number or an array.   start: at t = 0.   floor: without the context.
  """
  return floor + (start - floor) * (1 - replaced / slots) ** np.asarray(t, float)


def oldest_first(t, contexts: int, *, start: float = 1.0, floor: float = 0.0):
  """Law of a ring buffer, or of the least recently used of slots that are read evenly: all of the
  `contexts` newest are kept, and nothing else."""
  return np.where(np.asarray(t) < contexts, start, floor)


def spilled(t, slots: int, replaced: int, spill: int, *, start: float = 1.0, floor: float = 0.0):
  """Law of a memory whose replaced slots go to a second one of `spill` slots, which drops its
  oldest (as that of M+, Wang et al. 2025, arXiv 2502.00592), if what lies there is always found:
  nothing is lost for spill / replaced writes, and then as much as the first one loses."""
  late = np.maximum(np.asarray(t, float) - spill / replaced, 0)
  return random_replacement(late, slots, replaced, start=start, floor=floor)


def half_life(accuracy, *, floor: float = 0.0) -> float:
  """Writes after which half of what is above the floor is left, by the exponential nearest to a
  curve `[T + 1]` in squares; infinite where it does not fall, and 0 where nothing is above it."""
  above = np.asarray(accuracy, float) - floor
  if above.max() <= 0:
    return 0.0
  t = np.arange(len(above))
  rates = np.concatenate([[0.0], np.geomspace(1e-5, 10, 2000)])
  shapes = np.exp(-np.outer(rates, t))
  heights = shapes @ above / np.sum(shapes**2, axis=1)
  best = np.argmin(np.sum((above - heights[:, None] * shapes) ** 2, axis=1))
  return float(np.log(2) / rates[best]) if best else float("inf")


def area(accuracy, *, floor: float = 0.0) -> float:
  """Sum of what a curve `[T + 1]` has above the floor, of all above it: the number of writes that a
  fact outlives, its own included."""
  return float(np.sum(np.asarray(accuracy, float) - floor) / (1 - floor))
