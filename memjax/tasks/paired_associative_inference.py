"""Paired associative inference (after "MEMO", Banino et al. 2020, arXiv 2001.10913).

Chains A-B-C are shown as pairs AB and BC alone, and questions are also about items that were in no
pair together: each shows a cue and two items, left and right, one of the cue's chain and a lure
from the same place of another chain.

`PairedAssociativeInference` is the generated task, all of an episode in one sequence; `sample`
draws one question at a time, its parts apart.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field

SEP, ASK, LEFT, RIGHT, NEAR, FIRST = 1, 2, 3, 4, 5, 16  # ids; NEAR: one pair away; FIRST item


@dataclasses.dataclass(frozen=True)
class PairedAssociativeInference(Task):
  """Pairs of an episode in any order, either item first, then different questions about them:

      b a SEP  e f SEP  b c SEP ..  ASK c left right  ASK ..

  LEFT or RIGHT is due at `right`. With `answers="open"` a question is `ASK cue d`, cue an end of a
  chain, and the item that stands d pairs from it is due. With `form="vectors"` items are vectors
  of length 1 and a step is a pair (a, b, 0, 0) or a question (cue, left, right, 1); 0 (left) or 1
  is due at the latter: `Batch.inputs` are `[B, T, 3 dim + 1] float32`.

  Ids: 0 padding, 1 SEP, 2 ASK, 3 LEFT, 4 RIGHT, 5.. distances from 1, 16.. items, drawn anew for
  each episode. The default is the paper's A-B-C; longer chains and more of them are its tests.
  Differences: items are drawn, where the paper has embeddings of pictures; indirect questions too
  are cued from either side, where its released ones have the cue A alone.

  Attributes:
    chains: in an episode.   chain: items of each.   questions: of all pairs of places in chains.
    answers: "choice" or "open".   form: "ids" or "vectors".
    items: ids of items.   dim: of an item's vector.

  Meta: `distance [T]`, pairs from cue to answer, 1 for direct questions; `kind [T]`, which places
  of the chain, from 1 in the order AB, BC, AC, CD, BD, AD, ...; 0 elsewhere.

  Raises:
    ValueError: there are fewer questions or items than asked for.
  """

  chains: int = 16
  chain: int = 3
  questions: int = 16
  answers: str = "choice"
  form: str = "ids"
  items: int = 4096
  dim: int = 64
  number = 50

  def __post_init__(self):
    checks.positive(questions=self.questions, items=self.items, dim=self.dim)
    checks.one_of("answers", self.answers, ("choice", "open"))
    checks.one_of("form", self.form, ("ids", "vectors"))
    if self.chains < 2 or not 3 <= self.chain <= 1 + FIRST - NEAR:
      raise ValueError(f"chains={self.chains} must be at least 2, chain={self.chain} in 3..12")
    if self.questions > self.chains * len(self.links):
      most = f"chains={self.chains} of {self.chain} allow {self.chains * len(self.links)}"
      raise ValueError(f"questions={self.questions} must differ: {most}")
    if self.items < self.chains * self.chain:
      raise ValueError(f"items={self.items} must be at least {self.chains * self.chain}")
    if self.form == "vectors" and self.answers == "open":
      raise ValueError("form='vectors' needs answers='choice'; an open answer is an id")

  @property
  def links(self) -> np.ndarray:
    """Places of cue and answer for each question about a chain, `[P, 2]`."""
    if self.answers == "open":
      last = self.chain - 1
      return np.asarray([(end, abs(end - d)) for end in (0, last) for d in range(1, last + 1)])
    return np.asarray([(i, j) for j in range(1, self.chain) for i in reversed(range(j))])

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return 2 if self.form == "vectors" else FIRST + self.items

  @property
  def input_form(self) -> str:  # type: ignore[override]
    return self.form

  @property
  def inputs_size(self) -> int:
    return 3 * self.dim + 1 if self.form == "vectors" else self.vocab

  @property
  def told(self) -> int:
    """Steps before the questions."""
    pairs = self.chains * (self.chain - 1)
    return pairs if self.form == "vectors" else 3 * pairs

  @property
  def step(self) -> int:
    """Steps of a question."""
    return 1 if self.form == "vectors" else 4 if self.answers == "choice" else 3

  @property
  def chance(self) -> float:
    return 0.5 if self.answers == "choice" else 1 / self.items

  @property
  def floor(self) -> float:
    """Of a reader of single pairs."""
    return 0.5 + 1 / self.chain if self.answers == "choice" else 1 / (self.chain - 1)

  @property
  def state_bits(self) -> float:
    each = math.log2(self.items) if self.form == "ids" else 32 * self.dim
    return self.chains * self.chain * each

  def example(self, key: jax.Array) -> Batch:
    n, q, size = self.chains, self.questions, self.chain
    at = jnp.arange(n * size).reshape(n, size)  # items by number
    pairs = jnp.stack([at[:, :-1], at[:, 1:]], axis=-1).reshape(-1, 2)
    pairs, _ = _flipped(field(key, 1), pairs)
    pairs = pairs[draw.distinct(field(key, 2), len(pairs), len(pairs))]

    which = draw.distinct(field(key, 3), n * len(self.links), q)
    chain, kind = which // len(self.links), which % len(self.links)
    link = jnp.asarray(self.links, jnp.int32)[kind]
    if self.answers == "choice":
      link, _ = _flipped(field(key, 4), link)
    other = (chain + jax.random.randint(field(key, 5), (q,), 1, n)) % n
    cue, right, lure = at[chain, link[:, 0]], at[chain, link[:, 1]], at[other, link[:, 1]]
    options, side = _flipped(field(key, 6), jnp.stack([right, lure], axis=1))
    distance = jnp.abs(link[:, 1] - link[:, 0])

    if self.form == "vectors":
      item = jax.random.normal(field(key, 0), (n * size, self.dim))
      item = item / jnp.linalg.norm(item, axis=1, keepdims=True)
      blank, none = jnp.zeros((len(pairs), self.dim)), jnp.zeros((len(pairs), 1))
      told = jnp.concatenate([item[pairs[:, 0]], item[pairs[:, 1]], blank, none], axis=1)
      parts = [item[cue], item[options[:, 0]], item[options[:, 1]], jnp.ones((q, 1))]
      inputs, due = jnp.concatenate([told, jnp.concatenate(parts, axis=1)]), side
    else:
      item = FIRST + draw.distinct(field(key, 0), self.items, n * size)
      told = jnp.concatenate([item[pairs], jnp.full((len(pairs), 1), SEP)], axis=1).reshape(-1)
      if self.answers == "choice":
        tail, due = [item[options[:, 0]], item[options[:, 1]]], LEFT + side
      else:
        tail, due = [NEAR - 1 + distance], item[right]
      asked = jnp.stack([jnp.full(q, ASK), item[cue], *tail], axis=1).reshape(-1)
      inputs = jnp.concatenate([told, asked]).astype(jnp.int32)
    place = self.told + self.step * (1 + jnp.arange(q)) - 1
    nothing = jnp.zeros(len(inputs), jnp.int32)
    targets = (nothing + IGNORE).at[place].set(due)
    kind = kind + 1 if self.answers == "choice" else nothing[:q]
    meta = {"distance": nothing.at[place].set(distance), "kind": nothing.at[place].set(kind)}
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(len(inputs)), meta)

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    del length
    return self.linked(inputs, self.chain - 1)

  def linked(self, inputs: jax.Array, hops: int) -> jax.Array:
    """The targets `[T]` by pairs that share items, no more than `hops` of them after another; left
    where these do not tell."""
    told, asked = inputs[: self.told], inputs[self.told :]
    if self.form == "vectors":
      ends = told[:, : 2 * self.dim].reshape(-1, self.dim)
      cue, *options = jnp.split(asked[:, :-1], 3, axis=1)
      same = lambda a, b: a @ b.T > 0.9  # noqa: E731
    else:
      ends = told.reshape(-1, 3)[:, :2].reshape(-1)
      asked = asked.reshape(-1, self.step)
      cue, options = asked[:, 1], [asked[:, 2], asked[:, -1]]
      same = lambda a, b: a[:, None] == b[None]  # noqa: E731
    equal = same(ends, ends).astype(jnp.float32)
    reached = [same(cue, ends)]  # [Q, ends], after so many hops
    for _ in range(hops):
      across = reached[-1].reshape(len(cue), -1, 2)[..., ::-1].reshape(reached[-1].shape)
      reached.append(reached[-1] | (across.astype(jnp.float32) @ equal > 0))
    if self.answers == "open":
      new = jnp.stack([b & ~a for a, b in itertools.pairwise(reached)])  # [hops, Q, ends]
      far = jnp.clip(options[0] - NEAR, 0, hops - 1)
      due = ends[jnp.argmax(new[far, jnp.arange(len(cue))], axis=1)]
    else:
      right = jnp.any(same(options[1], ends) & reached[-1], axis=1)
      due = right.astype(jnp.int32) + (0 if self.form == "vectors" else LEFT)
    nothing = jnp.full((len(cue), self.step), IGNORE, jnp.int32)
    return jnp.concatenate([jnp.full(self.told, IGNORE), nothing.at[:, -1].set(due).reshape(-1)])

  def closed_book(self, batch: Batch) -> Batch:
    """The questions without the pairs."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, : self.told].set(PAD))


def _flipped(key: jax.Array, pair: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The two last numbers, exchanged in half of all cases, and where they are, as int32."""
  flip = jax.random.bernoulli(key, 0.5, pair.shape[:-1])
  return jnp.where(flip[..., None], pair[..., ::-1], pair), flip.astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inferences:
  """Pairs `[B, F, 2]`, the items of one in any order; int32 throughout.

  Attributes:
    question: `[B, 3]`, cue, left, right.
    answer: `[B]`, the id of the item that belongs to the cue.
    side: `[B]`, 0 if that is the left one, 1 if the right one.
    distance: `[B]`, the pairs from cue to answer: 1 is a direct question, more an indirect one.
  """

  facts: jax.Array
  question: jax.Array
  answer: jax.Array
  side: jax.Array
  distance: jax.Array


@dataclasses.dataclass(frozen=True)
class World:
  """Numbers of different items, of chains in an episode and of items in a chain.

  The paper has 16 chains of 3 to 5 pictures.
  """

  items: int = 12
  chains: int = 3
  length: int = 3

  def __post_init__(self):
    if self.chains < 2 or self.length < 2 or self.items < self.chains * self.length:
      raise ValueError(f"{self}: chains >= 2, length >= 2, items >= chains * length")

  @property
  def vocab(self) -> int:
    return 1 + self.items

  @property
  def facts(self) -> int:
    return self.chains * (self.length - 1)


def sample(key: jax.Array, batch: int, world: World, *, distance: int | None = None) -> Inferences:
  """`batch` episodes, each of chains drawn anew, with one question about either end of a link.

  Args:
    distance: that of all questions; None: two places of a chain, all equally likely.
  """
  n = world.length
  if distance is not None and not 1 <= distance < n:
    raise ValueError(f"distance={distance} must lie in 1..{n - 1}, for chains of length={n}")
  links = np.asarray([(i, j) for i in range(n) for j in range(i + 1, n)], np.int32)
  links = links if distance is None else links[links[:, 1] - links[:, 0] == distance]
  keys = jax.random.split(key, 8)
  chosen = jnp.argsort(jax.random.uniform(keys[0], (batch, world.items)), axis=1)
  chains = 1 + chosen[:, : world.chains * n].reshape(batch, world.chains, n)

  pairs = jnp.stack([chains[:, :, :-1], chains[:, :, 1:]], axis=-1).reshape(batch, -1, 2)
  pairs, _ = _flipped(keys[1], pairs)
  order = jnp.argsort(jax.random.uniform(keys[2], pairs.shape[:2]), axis=1)
  drawn = jax.random.randint(keys[3], (batch,), 0, len(links))
  link, _ = _flipped(keys[4], jnp.asarray(links)[drawn])
  chain = jax.random.randint(keys[5], (batch,), 0, world.chains)
  other = (chain + jax.random.randint(keys[6], (batch,), 1, world.chains)) % world.chains
  rows = jnp.arange(batch)
  cue, answer = chains[rows, chain, link[:, 0]], chains[rows, chain, link[:, 1]]
  options = jnp.stack([answer, chains[rows, other, link[:, 1]]], axis=1)
  options, side = _flipped(keys[7], options)
  return Inferences(
    facts=jnp.take_along_axis(pairs, order[:, :, None], axis=1).astype(jnp.int32),
    question=jnp.concatenate([cue[:, None], options], axis=1).astype(jnp.int32),
    answer=answer.astype(jnp.int32),
    side=side.astype(jnp.int32),
    distance=jnp.abs(link[:, 1] - link[:, 0]).astype(jnp.int32),
  )
