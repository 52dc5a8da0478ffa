"""Stays of uneven length at several places (after the Room Ballet tasks of "Spatially-Aware
Transformer for Embodied Agents", Cho, Yoon, Ahn 2024, arXiv 2402.15160).

`sample`: what was seen at a place? A queue for each place knows; one queue as large as all of them
forgets whatever stands before a long stay. `sample_tasks`: which frames are asked for depends on
the task, and of four strategies of forgetting one is right for each.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stays:
  """What was seen and where, `[B, T]`, a frame a step; the place asked for `[B]`, what was seen
  there `[B]`, and after how many frames of other places `[B]`; int32."""

  thing: jax.Array
  place: jax.Array
  asked: jax.Array
  answer: jax.Array
  since: jax.Array


def sample(key: jax.Array, batch: int, stays: Sequence[int], *, things: int = 4) -> Stays:
  """A row visits every place once, in random order; stay i lasts `stays[i]` frames, which all show
  the one thing of that place. Any place may be asked for."""
  if min(stays) < 1:
    raise ValueError(f"stays={list(stays)} must be frames >= 1, one a place")
  places, lengths = len(stays), jnp.asarray(stays, jnp.int32)
  keys = jax.random.split(key, 3)
  order = jnp.argsort(jax.random.uniform(keys[0], (batch, places)), axis=1)
  shown = jax.random.randint(keys[1], (batch, places), 0, things)  # by visit
  visit = jax.random.randint(keys[2], (batch, 1), 0, places)
  time = jnp.repeat(jnp.arange(places), lengths, total_repeat_length=sum(stays))
  since = sum(stays) - jnp.cumsum(lengths)

  def of(values):
    return jnp.take_along_axis(values, visit, axis=1)[:, 0].astype(jnp.int32)

  return Stays(
    thing=shown[:, time].astype(jnp.int32),
    place=order[:, time].astype(jnp.int32),
    asked=of(order),
    answer=of(shown),
    since=since[visit[:, 0]].astype(jnp.int32),
  )


TASKS = ("the last", "the first", "the most visited place", "every place")
FRAMES, CAPACITY, PLACES = 15, 8, 5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Questions:
  """The cue, what is seen and the place of each frame, `[B, T]`; the task, the frame asked for, its
  cue and its thing, `[B]`; int32."""

  cue: jax.Array
  thing: jax.Array
  place: jax.Array
  task: jax.Array
  frame: jax.Array
  asked: jax.Array
  answer: jax.Array


def sample_tasks(key: jax.Array, batch: int, *, things: int = 4) -> Questions:
  """Rows of `FRAMES` frames at `PLACES` places, every one with a cue of its own below `FRAMES`; row
  b has task b modulo 4. What was seen in the frame with this cue?

  A memory of `CAPACITY` frames surely has the answer to a task with one strategy alone: asked for
  is one of the last frames (keep the last), of the first (keep the first), of those of the place
  that is visited most (forget the least visited place), the last frame of any place (forget the
  most visited).
  """
  keys = jax.random.split(key, 7)
  name = jnp.argsort(jax.random.uniform(keys[0], (batch, PLACES)), axis=1)
  first = jnp.asarray([0, 0, 0, 0, 1, 2, 3, 4])  # place 0 is visited most
  second = jnp.asarray([0, 0, 0, 1, 1, 2, 2])  # and 3 and 4 never again

  def shuffled(key, values):
    order = jnp.argsort(jax.random.uniform(key, (batch, len(values))), axis=1)
    return values[order]

  role = jnp.concatenate([shuffled(keys[1], first), shuffled(keys[2], second)], axis=1)
  cue = shuffled(keys[3], jnp.arange(FRAMES))
  thing = jax.random.randint(keys[4], (batch, FRAMES), 0, things)
  time, task = jnp.arange(FRAMES).reshape(1, -1), jnp.arange(batch) % len(TASKS)
  later = (role[:, :, None] == role[:, None]) & (time[:, :, None] < time[:, None])
  kinds = time >= FRAMES - CAPACITY, time < CAPACITY, role == 0, ~jnp.any(later, axis=2)
  can = jnp.select([(task == index)[:, None] for index in range(len(TASKS))], kinds)
  frame = jnp.argmax(jax.random.uniform(keys[5], (batch, FRAMES), minval=1e-6) * can, axis=1)

  def of(values):
    return jnp.take_along_axis(values, frame[:, None], axis=1)[:, 0].astype(jnp.int32)

  place = jnp.take_along_axis(name, role, axis=1)
  arrays = cue, thing, place, task, frame, of(cue), of(thing)
  return Questions(*(a.astype(jnp.int32) for a in arrays))
