"""Which stored entry makes room for a new one: strategies of a store with a fixed capacity, whose
entries have times and places.

B batch, T items in a call, E entries, P places, G groups of places.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from memjax.core import as_state, leaf, scan

POLICIES = ("fifo", "lifo", "lvfo", "mvfo", "place")  # their ids are 0, 1, ...
EMPTY = -1  # the time of an entry that holds nothing
_NEVER = jnp.iinfo(jnp.int32).max


@as_state
class Ledger:
  """When and where the entries of a store were made.

  Attributes:
    times: `[B, E]` int32, how many items came before; `EMPTY` where there is no entry.
    places: `[B, E]` int32.
    clock: `[B]` int32, items that came since the reset, stored or not.
  """

  times: jax.Array = leaf("slots")
  places: jax.Array = leaf("slots")
  clock: jax.Array = leaf()

  @property
  def filled(self) -> jax.Array:
    """`[B, E]` bool."""
    return self.times >= 0

  @property
  def ages(self) -> jax.Array:
    """`[B, E]` int32, items that came after the entry: 0 is the last one."""
    return self.clock[:, None] - 1 - self.times


@as_state
class Holding:
  """A ledger, and where in the past of a call each entry lies, `[B, E]` int32."""

  ledger: Ledger
  source: jax.Array = leaf("slots")


class Walk(NamedTuple):
  """What `walk` found.

  Attributes:
    before: of each item what was stored before it, `[B, T, ...]`.
    slots: `[B, T]` int32, the entry that each item became; E: none.
    after: what is stored after the last item.
  """

  before: Holding
  slots: jax.Array
  after: Holding


def empty(batch: int, capacity: int) -> Ledger:
  """A ledger of no entries."""
  times = jnp.full((batch, capacity), EMPTY, jnp.int32)
  return Ledger(times, jnp.zeros_like(times), jnp.zeros(batch, jnp.int32))


def slot(ledger: Ledger, place, policy, groups) -> jax.Array:
  """The entry `[B]` int32 that an item at `place [B]` becomes; E where it is not stored.

  Of the entries that a policy offers the first empty one is taken, else the oldest:

      fifo   all                            lifo   the empty ones
      lvfo   when full, those of the place that has the fewest of them, but has some
      mvfo   when full, those of the place that has the most; of equal places the lowest id
      place  when the item's group has its share of E / G entries, those of the group; else all

  Places are counted before the item comes. Any other policy stores nothing.

  Args:
    policy: `[B]` int32, ids of `POLICIES`.
    groups: `[P]` int32, the group of each place, and G.
  """
  (group_of, count), filled, capacity = groups, ledger.filled, ledger.times.shape[1]
  full = jnp.all(filled, axis=1, keepdims=True)
  every = jnp.arange(len(group_of)).reshape(1, 1, -1)
  visits = jnp.sum((ledger.places[:, :, None] == every) & filled[:, :, None], axis=1)
  least = jnp.argmin(jnp.where(visits > 0, visits, _NEVER), axis=1)
  most = jnp.argmax(visits, axis=1)

  def of(chosen):
    return jnp.where(full, filled & (ledger.places == chosen[:, None]), ~filled)

  own = filled & (group_of[ledger.places] == group_of[place][:, None])
  has_share = jnp.sum(own, axis=1, keepdims=True) >= max(capacity // count, 1)
  everything = jnp.ones_like(filled)
  offers = everything, ~filled, of(least), of(most), jnp.where(has_share, own, everything)
  chosen = [(policy == index)[:, None] for index in range(len(POLICIES))]
  offered = jnp.select(chosen, offers, False)
  oldest = jnp.argmin(jnp.where(offered, ledger.times, _NEVER), axis=1)
  return jnp.where(jnp.any(offered, axis=1), oldest, capacity).astype(jnp.int32)


def walk(ledger: Ledger, places, policy, stored, *, groups, reset=None) -> Walk:
  """Lets T items come, one after another, without their contents.

  A `source` below E is an entry of the state before the call, and E + t is item t.

  Args:
    places, policy: `[B, T]` int32.   stored: `[B, T]` bool, which items come at all.
    groups: as in `slot`.   reset: `[B, T]` bool, before which items the row is emptied.
  """
  batch, capacity = ledger.times.shape
  own = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32).reshape(1, -1), (batch, capacity))
  order = capacity + jnp.arange(places.shape[1], dtype=jnp.int32).reshape(1, -1)
  inputs = places, policy, jnp.broadcast_to(order, places.shape)

  def step(inputs, state, context):
    place, policy, source = inputs
    at = slot(state.ledger, place, policy, groups)
    rows, ledger = jnp.arange(batch), state.ledger

    def put(a, new):
      return a.at[rows, at].set(new.astype(jnp.int32), mode="drop")

    times, places = put(ledger.times, ledger.clock), put(ledger.places, place)
    new = Holding(Ledger(times, places, ledger.clock + 1), put(state.source, source))
    return (state, at), new

  init = None if reset is None else Holding(empty(batch, capacity), own)
  start = Holding(ledger, own)
  (before, slots), after = scan(step, inputs, start, init=init, reset=reset, valid=stored)
  return Walk(before, jnp.where(stored, slots, capacity), after)
