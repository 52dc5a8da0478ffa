"""Paired associative inference (after "MEMO", Banino et al. 2020, arXiv 2001.10913).

Chains A-B-C are shown as pairs AB and BC alone, and questions are also about items that were in no
pair together.

A question shows a cue and two items, left and right: one of the cue's chain, and a lure from the
same place of another chain. Ids: 0 pads, then the items.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


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

  def flipped(pair, key):  # the two last numbers, exchanged in half of all cases
    flip = jax.random.bernoulli(key, 0.5, pair.shape[:-1])[..., None]
    return jnp.where(flip, pair[..., ::-1], pair), flip[..., 0]

  pairs = jnp.stack([chains[:, :, :-1], chains[:, :, 1:]], axis=-1).reshape(batch, -1, 2)
  pairs, _ = flipped(pairs, keys[1])
  order = jnp.argsort(jax.random.uniform(keys[2], pairs.shape[:2]), axis=1)
  link, _ = flipped(
    jnp.asarray(links)[jax.random.randint(keys[3], (batch,), 0, len(links))], keys[4]
  )
  chain = jax.random.randint(keys[5], (batch,), 0, world.chains)
  other = (chain + jax.random.randint(keys[6], (batch,), 1, world.chains)) % world.chains
  rows = jnp.arange(batch)
  cue, answer = chains[rows, chain, link[:, 0]], chains[rows, chain, link[:, 1]]
  options = jnp.stack([answer, chains[rows, other, link[:, 1]]], axis=1)
  options, side = flipped(options, keys[7])
  return Inferences(
    facts=jnp.take_along_axis(pairs, order[:, :, None], axis=1).astype(jnp.int32),
    question=jnp.concatenate([cue[:, None], options], axis=1).astype(jnp.int32),
    answer=answer.astype(jnp.int32),
    side=side.astype(jnp.int32),
    distance=jnp.abs(link[:, 1] - link[:, 0]).astype(jnp.int32),
  )
