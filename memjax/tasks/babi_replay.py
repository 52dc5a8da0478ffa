"""Answers to the questions of bAbI's tasks 1 to 3 from ids alone: the oracle of `Babi` and
`BABILong`. It looks back from the questions; `babi_world` goes forward with a reader's state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memjax.tasks import babi_words as words
from memjax.tasks.babi_words import DROP, GET, MOVE, Lexicon

ASK = 3
SPAN = 7  # ids of a statement, at most


class Events(NamedTuple):
  """Statements and questions in order, `[E]` int32 each; -1 where there is none of the name.

  `place` is where the answer to a question is due, `ids.size` for statements and behind the last.
  """

  kind: jax.Array  # MOVE, GET, DROP, ASK; -1 behind the last
  actor: jax.Array
  object: jax.Array
  location: jax.Array
  place: jax.Array


def read_words(ids: jax.Array, lexicon: Lexicon, size: int) -> Events:
  """The first `size` sentences of the world in `ids [T]`; other text may lie around them.

  A statement begins with an actor and a verb; a question is "where is" or "where was" with a name.
  """
  total = len(ids)
  verbs = np.full(lexicon.size, -1, np.int32)
  for kind, group in ((MOVE, words.MOVES), (GET, words.GETS), (DROP, words.DROPS)):
    verbs[[lexicon.ids[verb.split()[0]] for verb in group]] = kind
  ahead = lambda n: jnp.roll(ids, -n).at[total - n :].set(0)  # noqa: E731
  kind_of = lambda x: jnp.where(  # noqa: E731
    x < lexicon.size, jnp.asarray(verbs)[jnp.minimum(x, lexicon.size - 1)], -1
  )
  actor, thing, _ = (_names(lexicon, kind) for kind in range(3))
  told = (actor(ids) >= 0) & (kind_of(ahead(1)) >= 0)
  asks = (ids == lexicon.ids["where"]) & ((actor(ahead(2)) >= 0) | (thing(ahead(3)) >= 0))
  at = jnp.nonzero(told | asks, size=size, fill_value=total)[0]
  span = jnp.pad(ids, (0, SPAN + 1))[at[:, None] + jnp.arange(SPAN + 1)[None]]  # [E, span]
  asks = span[:, 0] == lexicon.ids["where"]
  kind = jnp.where(at == total, -1, jnp.where(asks, ASK, kind_of(span[:, 1])))
  actor, thing, location = (_first(_names(lexicon, name)(span)) for name in range(3))
  end = at + jnp.argmax(span == lexicon.ids["?"], axis=1)
  return Events(kind, actor, thing, location, jnp.where(kind == ASK, end, total))


def _names(lexicon: Lexicon, kind: int):
  """A function from ids to the numbers of names of a kind, -1 where they are none."""
  first = lexicon.first[kind]
  count = (lexicon.actors, lexicon.objects, lexicon.locations)[kind]
  return lambda ids: jnp.where((ids >= first) & (ids < first + count), ids - first, -1)


def _first(names: jax.Array) -> jax.Array:
  """The first number that is not -1 of each row of `names [E, n]`, or -1."""
  column = jnp.argmax(names >= 0, axis=1)
  return jnp.take_along_axis(names, column[:, None], axis=1)[:, 0]


def read_symbols(ids: jax.Array, lexicon: Lexicon) -> Events:
  """The sentences of `ids [3 E]`, three ids each."""
  rows = ids.reshape(-1, 3)
  code = [lexicon.ids[name] for name in ("move", "get", "drop")]
  asks = [lexicon.ids[name] for name in ("where", "where-object", "where-was")]
  kind = jnp.full(len(rows), -1)
  for i, name in enumerate((*code, *asks)):
    kind = jnp.where(rows[:, 0] == name, min(i, ASK), kind)
  actor, thing, location = (_first(_names(lexicon, name)(rows)) for name in range(3))
  place = jnp.where(kind == ASK, 3 * jnp.arange(len(rows)) + 2, len(ids))
  return Events(kind, actor, thing, location, place)


def answers(events: Events, task: int, actors: int, questions: int) -> tuple[jax.Array, jax.Array]:
  """The locations that the first `questions` questions ask for.

  Returns:
    answers `[Q] int32`, -1 unknown; places `[Q]` where they are due.
  """
  size = len(events.kind)
  at = jnp.arange(size)[None]
  asked = jnp.nonzero(events.kind == ASK, size=questions, fill_value=size)[0]
  number = jnp.minimum(asked, size - 1)
  since = lambda here: jax.lax.cummax(jnp.where(here, at, -1), axis=1)  # noqa: E731
  who = jnp.arange(actors)[:, None]
  # The last move until each event, [A, E].
  moves = since((events.kind == MOVE)[None] & (events.actor[None] == who))
  if task == 1:
    found = _at(events.location, moves[events.actor[number], number])
  else:
    things = events.object[number][:, None]
    handled = (events.kind == GET) | (events.kind == DROP)
    touches = since(handled[None] & (events.object[None] == things))
    touch = jnp.maximum(touches, 0)  # [Q, E]
    seen = jnp.where(events.kind[touch] == GET, at, touch)
    move = jnp.where(touches < 0, -1, moves[events.actor[touch], seen])
    here = _at(events.location, move)  # [Q, E], where the object is after each
    early = at < asked[:, None]
    column = number[:, None]
    if task == 3:
      named = events.location[number][:, None]
      stay = jnp.max(jnp.where(early & (here == named), at, -1), axis=1, keepdims=True)
      column = jnp.max(
        jnp.where((at < stay) & (here >= 0) & (here != named), at, -1), axis=1, keepdims=True
      )
    found = jnp.take_along_axis(here, jnp.maximum(column, 0), axis=1)[:, 0]
    found = jnp.where(column[:, 0] < 0, -1, found)
  due = jnp.where(asked < size, events.place[number], jnp.iinfo(jnp.int32).max)
  return found.astype(jnp.int32), due


def _at(values: jax.Array, places: jax.Array) -> jax.Array:
  """`values [E]` at places, -1 where these are."""
  return jnp.where(places < 0, -1, values[jnp.maximum(places, 0)])
