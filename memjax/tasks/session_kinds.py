"""What `memjax.tasks.sessions` asks: each kind of question says what must be told for it and asks,
and answers from what was told.

A kind has two functions. `tell` gets the drawn choices of a question and returns the statements
that it needs and the question; `answer` gets all statements that were read from the stream and the
question's ids. They share nothing but the ids.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PAIRS = 7  # of subject and relation that a question has to itself; the last one is never told
CHAIN = 7  # events of "next"
NINE = 9  # numbers that "sum" and "most" tell are 1 .. 9


class Choices(NamedTuple):
  """What is drawn for one question."""

  pairs: jax.Array  # [PAIRS, 2] ids of subject and relation
  when: jax.Array  # [CHAIN] sessions, all different, in random order
  values: jax.Array  # [CHAIN] ids of objects, all different
  numbers: jax.Array  # [CHAIN] of 1 .. 9, all different
  order: jax.Array  # [CHAIN] a random order
  count: jax.Array  # 2 .. most
  coin: jax.Array  # uniform in [0, 1)
  pick: jax.Array  # a large whole number


class Told(NamedTuple):
  """Statements for one question, `[CHAIN]` each: whether there is one, in which session, of which
  of the question's pairs, the id of the value; `second`: it has another in its session."""

  on: jax.Array
  when: jax.Array
  pair: jax.Array
  value: jax.Array
  second: jax.Array


class Read(NamedTuple):
  """Statements of a whole stream in their order, `[N]` each; `valid`: there is one."""

  valid: jax.Array
  subject: jax.Array
  relation: jax.Array
  value: jax.Array
  day: jax.Array


class Kind(NamedTuple):
  """A kind of question. `asked` ids stand before the first answer, `due` answers are due."""

  tell: Callable[[Any, Choices], tuple[Told, list, list]]
  answer: Callable[[Any, Read, jax.Array], list]
  asked: Callable[[Any], int]
  due: Callable[[Any], int]


def _told(
  c: Choices, count, value, when=None, pair: jax.Array | int = 0, second: jax.Array | bool = False
) -> Told:
  g = jnp.arange(len(c.when))
  when = c.when if when is None else when
  pair, second = jnp.broadcast_to(pair, g.shape), jnp.broadcast_to(second, g.shape)
  return Told(g < count, when, pair, value, second)


def _in_time(c: Choices, count) -> jax.Array:
  """The first `count` of the sessions, sorted."""
  g = jnp.arange(len(c.when))
  return jnp.sort(jnp.where(g < count, c.when, jnp.iinfo(jnp.int32).max))


def _of(read: Read, subject, relation) -> jax.Array:
  return read.valid & (read.subject == subject) & (read.relation == relation)


def _last(mask: jax.Array) -> jax.Array:
  return jnp.max(jnp.where(mask, jnp.arange(len(mask)), -1))


def _day(read: Read, subject, relation) -> jax.Array:
  return read.day[_last(_of(read, subject, relation))]


def _asks_one(task, c: Choices, count):
  """A pair that was told, or (`task.abstain`) one that was not: whether, and the pair."""
  absent = c.coin < task.abstain
  return absent, list(jnp.where(absent, c.pairs[-1], c.pairs[0]))


def _tell_last(task, c: Choices, count):
  absent, asked = _asks_one(task, c, count)
  due = jnp.where(absent, task.none, c.values[count - 1])
  return _told(c, count, c.values, _in_time(c, count)), asked, [due]


def _answer_last(task, read: Read, q) -> list:
  at = _last(_of(read, q[0], q[1]))
  return [jnp.where(at < 0, task.none, read.value[at])]


def _tell_hop(task, c: Choices):
  value = c.values.at[0].set(c.pairs[1, 0])
  pair = jnp.minimum(jnp.arange(len(c.when)), 1)
  return _told(c, 2, value, pair=pair), [*c.pairs[0], c.pairs[1, 1]], [c.values[1]]


def _answer_hop(task, read: Read, q) -> list:
  middle = read.value[_last(_of(read, q[0], q[1]))]
  return [read.value[_last(_of(read, middle, q[2]))]]


def _tell_count(task, c: Choices):
  return _told(c, c.count, c.values), list(c.pairs[0]), [task.numeral(c.count)]


def _answer_count(task, read: Read, q) -> list:
  return [task.numeral(jnp.sum(_of(read, q[0], q[1])))]


def _tell_sum(task, c: Choices):
  told = _told(c, c.count, task.numeral(c.numbers))
  return told, list(c.pairs[0]), [task.numeral(jnp.sum(jnp.where(told.on, c.numbers, 0)))]


def _answer_sum(task, read: Read, q) -> list:
  here = _of(read, q[0], q[1])
  return [task.numeral(jnp.sum(jnp.where(here, read.value - task.numeral(0), 0)))]


def _tell_most(task, c: Choices):
  told = _told(c, c.count, task.numeral(c.numbers))
  when = c.when[jnp.argmax(jnp.where(told.on, c.numbers, 0))]
  return told, list(c.pairs[0]), [task.numeral(task.day(when))]


def _answer_most(task, read: Read, q) -> list:
  here = _of(read, q[0], q[1])
  return [task.numeral(read.day[jnp.argmax(jnp.where(here, read.value, -1))])]


def _tell_on(task, c: Choices):
  when = _in_time(c, c.count)
  session = when[0] + c.pick % (task.sessions - when[0])
  force = jnp.sum((when <= session) & (jnp.arange(len(when)) < c.count)) - 1
  asked = [*c.pairs[0], task.numeral(task.day(session))]
  return _told(c, c.count, c.values, when), asked, [c.values[force]]


def _answer_on(task, read: Read, q) -> list:
  here = _of(read, q[0], q[1]) & (task.numeral(read.day) <= q[2])
  return [read.value[_last(here)]]


def _tell_distance(task, c: Choices):
  pair = jnp.minimum(jnp.arange(len(c.when)), 1)
  days = jnp.abs(task.day(c.when[0]) - task.day(c.when[1]))
  return _told(c, 2, c.values, pair=pair), [*c.pairs[0], *c.pairs[1]], [task.numeral(days)]


def _answer_distance(task, read: Read, q) -> list:
  return [task.numeral(jnp.abs(_day(read, q[0], q[1]) - _day(read, q[2], q[3])))]


def _tell_contradiction(task, c: Choices):
  same = c.coin < 0.5
  when = c.when.at[1].set(jnp.where(same, c.when[0], c.when[1]))
  later = c.values[jnp.where(c.when[1] > c.when[0], 1, 0)]
  told = _told(c, 2, c.values, when, second=jnp.arange(len(c.when)) == 1)
  return told, list(c.pairs[0]), [jnp.where(same, task.conflict, later)]


def _answer_contradiction(task, read: Read, q) -> list:
  here = _of(read, q[0], q[1])
  at = _last(here)
  other = here & (read.day == read.day[at]) & (read.value != read.value[at])
  return [jnp.where(jnp.any(other), task.conflict, read.value[at])]


def _tell_order(task, c: Choices, events: int):
  pair = jnp.minimum(jnp.arange(len(c.when)), events - 1)
  due = list(task.numeral(1 + jnp.argsort(c.when[:events])))[: events - 1]
  asked = [*c.pairs[:events].reshape(-1), *due[:-1]]
  return _told(c, events, c.values, pair=pair), asked, due


def _answer_order(task, read: Read, q, events: int) -> list:
  days = jnp.stack([_day(read, q[2 * i], q[2 * i + 1]) for i in range(events)])
  return list(task.numeral(1 + jnp.argsort(days)))[: events - 1]


def _tell_next(task, c: Choices):
  pair = jnp.minimum(jnp.arange(len(c.when)), CHAIN - 1)
  turn = jnp.argsort(c.when[:CHAIN])
  cue, right = turn[c.pick % (CHAIN - 1)], turn[c.pick % (CHAIN - 1) + 1]
  at = jnp.arange(CHAIN - 1)
  place = jnp.argmax(c.order == cue)
  others = c.order[at + (at >= place)]  # all but the cue, in random order
  asked = [*c.pairs[cue], *c.pairs[others].reshape(-1)]
  due = [task.numeral(1 + jnp.argmax(others == right))]
  return _told(c, CHAIN, c.values, pair=pair), asked, due


def _answer_next(task, read: Read, q) -> list:
  cue = _day(read, q[0], q[1])
  days = jnp.stack([_day(read, q[2 * i], q[2 * i + 1]) for i in range(1, CHAIN)])
  later = jnp.where(days > cue, days, jnp.iinfo(jnp.int32).max)
  return [task.numeral(1 + jnp.argmin(later))]


def _fixed(tell, answer, asked: int, due: int = 1) -> Kind:
  return Kind(tell, answer, lambda task: asked, lambda task: due)


KINDS: dict[str, Kind] = {
  "extraction": _fixed(lambda task, c: _tell_last(task, c, 1), _answer_last, 2),
  "update": _fixed(lambda task, c: _tell_last(task, c, c.count), _answer_last, 2),
  "hop": _fixed(_tell_hop, _answer_hop, 3),
  "count": _fixed(_tell_count, _answer_count, 2),
  "sum": _fixed(_tell_sum, _answer_sum, 2),
  "most": _fixed(_tell_most, _answer_most, 2),
  "on": _fixed(_tell_on, _answer_on, 3),
  "distance": _fixed(_tell_distance, _answer_distance, 4),
  "contradiction": _fixed(_tell_contradiction, _answer_contradiction, 2),
  "first": _fixed(
    lambda task, c: _tell_order(task, c, 2), lambda task, r, q: _answer_order(task, r, q, 2), 4
  ),
  "order": Kind(
    lambda task, c: _tell_order(task, c, task.events),
    lambda task, r, q: _answer_order(task, r, q, task.events),
    lambda task: 2 * task.events,
    lambda task: task.events - 1,
  ),
  "next": _fixed(_tell_next, _answer_next, 2 * CHAIN),
}
