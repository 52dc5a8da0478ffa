"""The world behind bAbI's tasks 1 to 3 (Weston et al. 2015, arXiv 1502.05698), as arrays.

Actors move between locations, get objects and drop them; questions ask where an actor is (task 1),
where an object is (2), where it was before (3). A reader is told the actions, not where all began.
A location is told of an object while its carrier's, or its dropper's at the drop, is told.

`law="files"`, inferred from the released files: all begin anywhere; actor, action and location are
drawn anew until they are possible; there is a chance to ask after every second statement; task 3
asks of two locations between which the object's last holder took it. Supports are those of the
files: the object's last line, its holder's line, and in task 3 the line of the location before.
`law="code"`, as in the authors' later code: the beginning is fixed, one action of three is a move
(of those that are possible), questions come with probability 1/2 after at least three statements,
task 2 asks of carried objects only, task 3 of any two locations; supports are the lines from which
a location first followed, of which one may be spare. Verbs are those of the files under both.

Difference: how often a chance to ask is taken (`TAKEN`) is fitted to the files, and does not depend
on the last question as it does there; task 3 asks of the last location only, the files also of
earlier ones (in one question of five).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import babi_words as words
from memjax.tasks.babi_words import DROP, GET, MOVE
from memjax.tasks.task import field

LAWS = ("files", "code")
TRIES = 64
TAKEN = {1: (1.0, 1.0), 2: (0.95, 0.4), 3: (0.25, 0.1)}  # of objects that lie, are carried
SPARE = {1: 2, 2: 20, 3: 60}  # statements for a question, hardly ever too few
START = ((4, 0, 2, 1), (0, 1, 0))  # of the code's actors and objects


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Story:
  """A story, by statement; all int32 but `asked`.

  Attributes:
    count: `[]`, statements; all else is of no meaning behind.
    kind: `[S]` MOVE, GET, DROP.   actor: `[S]`.   name: `[S]`, a location or object.
    template: `[S]` of `babi_words`.
    asked: `[S] bool`, whether a question follows.
    subject: `[S]`, the actor (task 1) or object.   before: `[S]`, the location named (task 3).
    answer: `[S]`, a location.   supports: `[S, 4]`, statements; -1: none.
  """

  count: jax.Array
  kind: jax.Array
  actor: jax.Array
  name: jax.Array
  template: jax.Array
  asked: jax.Array
  subject: jax.Array
  before: jax.Array
  answer: jax.Array
  supports: jax.Array


class State(NamedTuple):
  """What is so (`at`, `lies`, `by`), and what a reader knows with the statements that told it."""

  at: jax.Array  # [A] location
  lies: jax.Array  # [O] location, -1 carried
  by: jax.Array  # [O] carrier, -1 none
  told: jax.Array  # [A] location, -1 unknown
  move: jax.Array  # [A] statement of it
  left: jax.Array  # [O, 2] location told at the drop, statement of the dropper's move
  touch: jax.Array  # [O, 2] last statement, its actor
  past: jax.Array  # [O, 2, 6] the last two told locations: see `_remember`
  asked: jax.Array  # questions so far
  since: jax.Array  # statements since the last one


@dataclasses.dataclass(frozen=True)
class World:
  """Draws stories.

  Attributes:
    task: 1, 2 or 3.   questions: after the last one a story ends.
    statements: a story that needs more is drawn again, up to 64 times. None: hardly any needs more.
    actors, objects, locations: how many, up to 16.   law: "files" or "code".
    between: statements before each chance to ask; the code's law has its own for tasks 2 and 3.
  """

  task: int = 1
  questions: int = 5
  statements: int | None = None
  actors: int = 4
  objects: int = 3
  locations: int = 6
  law: str = "files"
  between: int = 2

  def __post_init__(self):
    checks.one_of("task", self.task, (1, 2, 3))
    checks.one_of("law", self.law, LAWS)
    checks.positive(questions=self.questions, between=self.between)
    checks.positive(statements=self.most)
    checks.positive(actors=self.actors, objects=self.objects, locations=self.locations)
    words.Lexicon((), self.actors, self.objects, self.locations)
    if self.locations < 2:
      raise ValueError(f"locations={self.locations} must be at least 2")
    each = self.between if self.steady else 3
    least = each * self.questions
    if self.most < least:
      raise ValueError(
        f"statements={self.statements} must be at least {least} for questions={self.questions}"
      )

  @property
  def most(self) -> int:
    """S, places for statements."""
    each = SPARE[self.task] * (self.between if self.steady else 2) // 2
    return each * self.questions if self.statements is None else self.statements

  @property
  def steady(self) -> bool:
    """Whether chances to ask come after every `between` statements."""
    return self.law == "files" or self.task == 1

  def tell(self, key: jax.Array, least: int | None = None) -> Story:
    """A story; with a number of questions that is enough, even if there is no room for all."""
    least = self.questions if least is None else least

    def again(carry):
      tries, story = carry
      return (jnp.sum(story.asked) < least) & (tries < TRIES)

    def draw(carry):
      tries, _ = carry
      return tries + 1, self._story(field(key, tries))

    shape = jax.eval_shape(self._story, key)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shape)
    return jax.lax.while_loop(again, draw, (jnp.int32(0), nothing))[1]

  def _story(self, key: jax.Array) -> Story:
    state = self._start(field(key, 0))
    dice = jax.random.uniform(field(key, 1), (self.most, 6))

    def step(state, given):
      t, dice = given
      live = state.asked < self.questions
      kind, actor, name = self._act(state, dice)
      state = self._happen(state, t, kind, actor, name)
      asks, *question = self._ask(state, t, dice[2:4])
      asks = asks & live
      told = jnp.where(asks, 0, state.since)
      state = state._replace(asked=state.asked + asks, since=told)
      return state, (live, kind, actor, name, asks, *question)

    _, (live, kind, actor, name, *rest) = jax.lax.scan(step, state, (jnp.arange(self.most), dice))
    always = (kind == GET) & (self.task == 2)  # the files' habit
    template = words.template(kind, dice[:, 4], always | (dice[:, 5] < 0.2))
    return Story(jnp.sum(live), kind, actor, name, template, *rest)

  def _start(self, key: jax.Array) -> State:
    a, o = self.actors, self.objects
    drawn = jnp.floor(jax.random.uniform(key, (a + o,)) * self.locations).astype(jnp.int32)
    at, lies = drawn[:a], drawn[a:]
    if self.law == "code" and (a, o, self.locations) == (4, 3, 6):
      at, lies = (jnp.asarray(places, jnp.int32) for places in START)
    nothing = lambda *shape: jnp.full(shape, -1, jnp.int32)  # noqa: E731
    zero = jnp.int32(0)
    known = nothing(a), nothing(a), nothing(o, 2), nothing(o, 2), nothing(o, 2, 6)
    return State(at, lies, nothing(o), *known, zero, zero)

  def _act(self, state: State, dice: jax.Array):
    """What happens next: kind, actor, name."""
    a, size = self.actors, max(self.locations, self.objects)
    names, who = jnp.arange(size)[None], jnp.arange(a)[:, None]
    fits = lambda rows: jnp.pad(rows, ((0, 0), (0, size - rows.shape[1])))  # noqa: E731
    moves = (state.at[:, None] != names) & (names < self.locations)
    gets = fits(state.lies[None] == state.at[:, None])
    drops = fits(state.by[None] == who)
    possible = jnp.stack([moves, gets, drops])  # [3, A, names]
    count = jnp.sum(possible, axis=-1)
    if self.task == 1:
      weight = count.at[GET:].set(0)
    elif self.law == "files":  # each tries all three; one location of all is where it is
      weight = jnp.minimum(count, 1) * self.locations
      weight = weight.at[MOVE].set(self.locations - 1)
    else:  # every get and drop alike, twice as often as moves
      others = jnp.sum(count[GET:])
      weight = (2 * a * count).at[MOVE].set(jnp.maximum(others, 1))
    kind, actor = jnp.divmod(_pick(dice[0], weight.reshape(-1)), a)
    return kind, actor, _pick(dice[1], possible[kind, actor].astype(jnp.int32))

  def _happen(self, state: State, t, kind, actor, name) -> State:
    """The state after statement t."""
    mine = jnp.arange(self.actors) == actor
    goes = mine & (kind == MOVE)
    thing = (jnp.arange(self.objects) == name) & (kind != MOVE)
    gets, drops = thing & (kind == GET), thing & (kind == DROP)
    left = jnp.stack([state.told[actor], state.move[actor]])
    touch = jnp.stack([t, actor])
    state = state._replace(
      at=jnp.where(goes, name, state.at),
      told=jnp.where(goes, name, state.told),
      move=jnp.where(goes, t, state.move),
      lies=jnp.where(gets, -1, jnp.where(drops, state.at[actor], state.lies)),
      by=jnp.where(gets, actor, jnp.where(drops, -1, state.by)),
      left=jnp.where(drops[:, None], left[None], state.left),
      touch=jnp.where(thing[:, None], touch[None], state.touch),
      since=state.since + 1,
    )
    return self._remember(state) if self.task == 3 else state

  def _place(self, state: State) -> tuple[jax.Array, jax.Array]:
    """The told locations of objects, and the statements of the moves that told them; -1 none."""
    carried, by = state.by >= 0, jnp.maximum(state.by, 0)
    place = jnp.where(carried, state.told[by], state.left[:, 0])
    return place, jnp.where(carried, state.move[by], state.left[:, 1])

  def _remember(self, state: State) -> State:
    """Keeps of the last two locations: which; the object's and the move's statement that first told
    it; the last such move; the actors that touched the object at the first and the last."""
    place, move = self._place(state)
    touch, who = state.touch[:, 0], state.touch[:, 1]
    newest = state.past[:, 0]
    new = (place >= 0) & (place != newest[:, 0])
    fresh = jnp.stack([place, touch, move, move, who, who], axis=1)
    known = (place == newest[:, 0]) & (place >= 0)
    late = jnp.asarray([False, False, False, True, False, True])
    newest = jnp.where(known[:, None] & late[None], fresh, newest)
    shifted = jnp.stack([fresh, state.past[:, 0]], axis=1)
    kept = jnp.stack([newest, state.past[:, 1]], axis=1)
    return state._replace(past=jnp.where(new[:, None, None], shifted, kept))

  def _ask(self, state: State, t: jax.Array, dice: jax.Array):
    """Whether a question may follow statement t; subject, location named, answer, supports."""
    place, move = self._place(state)
    last, before = state.past[:, 0], state.past[:, 1]
    carried = state.by >= 0
    if self.task == 1:
      fits = state.told >= 0
    elif self.task == 2:
      fits = (place >= 0) & (carried if self.law == "code" else True)
    else:
      same = (last[:, 4] == before[:, 5]) & (last[:, 4] == state.touch[:, 1])
      fits = (before[:, 0] >= 0) & (same if self.law == "files" else True)
    s = _pick(dice[0], fits.astype(jnp.int32))
    if self.steady:
      lies, held = TAKEN[self.task]
      taken = dice[1] < (1.0 if self.task == 1 else jnp.where(carried[s], held, lies))
      ready = ((t + 1) % self.between == 0) & taken
    else:
      ready = (state.since >= 3) & (dice[1] < 0.5)

    none = jnp.int32(-1)
    if self.task == 1:
      found = none, state.told[s], (state.move[s],)
    elif self.task == 2:
      found = none, place[s], (state.touch[s, 0], move[s])
    elif self.law == "files":
      found = last[s, 0], before[s, 0], (state.touch[s, 0], last[s, 2], before[s, 3])
    else:
      again = (before[s, 1] == last[s, 1]) | (before[s, 1] == last[s, 2])
      same = (before[s, 2] == last[s, 2]) | (before[s, 2] == last[s, 1])
      older = jnp.where(again, none, before[s, 1]), jnp.where(same, none, before[s, 2])
      found = last[s, 0], before[s, 0], (last[s, 1], last[s, 2], *older)
    named, answer, supports = found
    supports = jnp.stack([*supports, *(none,) * (4 - len(supports))])
    return ready & jnp.any(fits), s, named, answer, supports


def _pick(die: jax.Array, weight: jax.Array) -> jax.Array:
  """A place of `weight [n]` (small integers) in proportion to it, by `die` in [0, 1)."""
  total = jnp.cumsum(weight)
  ball = jnp.floor(die * total[-1]).astype(weight.dtype)
  return jnp.minimum(jnp.sum(total <= ball), len(weight) - 1).astype(jnp.int32)
