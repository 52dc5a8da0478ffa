"""Two-hop questions (after "Memory Networks", Weston, Chopra, Bordes 2014, arXiv 1410.3916): actors
go to rooms and take objects; where an object is takes its last taker, and then that actor's last
room. Questions about an actor take one hop. `sample_triples` states the same as triples.

Ids: 0 pads, then actors, objects, rooms. Statements are two words, (actor, room) or (actor,
object), questions one; the answer is a room's id.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stories:
  """Statements `[B, T, 2]` in order, questions `[B, 2]`, answers `[B]`; int32.

  `facts [B, hops]` are the places of the statements that give the answer, in the order of hops.
  """

  statements: jax.Array
  question: jax.Array
  answer: jax.Array
  facts: jax.Array


@dataclasses.dataclass(frozen=True)
class World:
  """Numbers of actors, objects and rooms."""

  actors: int = 3
  objects: int = 3
  rooms: int = 4

  @property
  def vocab(self) -> int:
    return 1 + self.actors + self.objects + self.rooms


def sample(key: jax.Array, batch: int, world: World, *, length: int = 8, hops: int = 2) -> Stories:
  """`batch` stories of `length` statements with a question of one or two hops each.

  Every actor goes somewhere first, and then takes something, so that all questions have an answer.
  """
  if length <= world.actors:
    raise ValueError(f"length={length} must exceed actors={world.actors}")
  keys = jax.random.split(key, 6)
  shape = (batch, length)
  time = jnp.arange(length).reshape(1, -1)
  order = jnp.argsort(jax.random.uniform(keys[0], (batch, world.actors)), axis=1)
  actor = jax.random.randint(keys[1], shape, 0, world.actors)
  actor = actor.at[:, : world.actors].set(order)
  takes = jax.random.bernoulli(keys[2], 0.5, shape) & (time >= world.actors)
  takes = takes | (time == world.actors)
  thing = jax.random.randint(keys[3], shape, 0, world.objects)
  room = jax.random.randint(keys[4], shape, 0, world.rooms)
  first = 1 + jnp.cumsum(jnp.asarray([0, world.actors, world.objects]))
  told = jnp.where(takes, first[1] + thing, first[2] + room)
  statements = jnp.stack([first[0] + actor, told], axis=-1)

  def last(flags):  # the place of the last true flag of each row
    return jnp.argmax(jnp.where(flags, time, -1), axis=1)

  def at(values, place):
    return jnp.take_along_axis(values, place[:, None], axis=1)[:, 0]

  if hops == 1:
    asked = jax.random.randint(keys[5], (batch,), 0, world.actors)
    holder, question, facts = asked, first[0] + asked, []
  else:
    asked = at(thing, jnp.argmax(jax.random.uniform(keys[5], shape) * takes, axis=1))
    facts = [last(takes & (thing == asked[:, None]))]
    holder = at(actor, facts[0])
    question = first[1] + asked
  facts.append(last(~takes & (actor == holder[:, None])))
  answer = first[2] + at(room, facts[-1])
  question = jnp.stack([question, jnp.zeros_like(question)], axis=-1)
  facts = jnp.stack(facts, axis=-1)
  return Stories(*(a.astype(jnp.int32) for a in (statements, question, answer, facts)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Triples:
  """Keys `[B, T, 2]` (subject, relation), values `[B, T, 1]`, questions `[B, 1]`, answers `[B]`."""

  keys: jax.Array
  values: jax.Array
  question: jax.Array
  answer: jax.Array


def sample_triples(key: jax.Array, batch: int, world: World) -> Triples:
  """In any order, who has each object and the room where each actor is; where is an object?

  The ids of the two relations follow those of the world: `world.vocab + 2` in all.
  """
  keys = jax.random.split(key, 4)
  actor, thing, room = 1, 1 + world.actors, 1 + world.actors + world.objects
  holder = jax.random.randint(keys[0], (batch, world.objects), 0, world.actors)
  place = jax.random.randint(keys[1], (batch, world.actors), 0, world.rooms)
  subject = jnp.concatenate([thing + jnp.arange(world.objects), actor + jnp.arange(world.actors)])
  relation = world.vocab + (subject < thing)
  told = jnp.concatenate([actor + holder, room + place], axis=1)
  order = jnp.argsort(jax.random.uniform(keys[2], told.shape), axis=1)
  asked = jax.random.randint(keys[3], (batch, 1), 0, world.objects)
  who = jnp.take_along_axis(holder, asked, axis=1)
  where = jnp.take_along_axis(place, who, axis=1)[:, 0]
  return Triples(
    keys=jnp.stack([subject, relation], axis=1)[order].astype(jnp.int32),
    values=jnp.take_along_axis(told, order, axis=1)[:, :, None].astype(jnp.int32),
    question=(thing + asked).astype(jnp.int32),
    answer=(room + where).astype(jnp.int32),
  )
