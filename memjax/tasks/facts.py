"""Random facts learned by heart, and how many bits of them a model holds.

After "Physics of Language Models: Part 3.3" (Allen-Zhu and Li 2024, arXiv 2404.05405), as tokens.

Each of N people has a name of a few tokens and, for every attribute a, one of |V_a| values drawn at
random. A question is the name's tokens and then the attribute's; the answer is one token. Nothing
but memory answers it, and names are combinations of tokens that many people share.

`tasks.fact_recall` is the same as a generated task, with more: values of several tokens, other
words, a stream, a tool. The estimators here are for both.

Ids: the tokens of the first part of a name, of the second, ..., attributes, values. All attributes
share the value tokens 0..max |V_a| - 1.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class World:
  """Numbers of people, of tokens for each part of a name, and of values of each attribute."""

  people: int = 4096
  names: tuple[int, ...] = (128, 128)
  choices: tuple[int, ...] = (16, 256, 256, 256)

  def __post_init__(self):
    if self.people < 1 or not self.names or not self.choices or min(self.choices) < 2:
      raise ValueError(f"{self}: people, parts of a name and attributes >= 1, choices >= 2")
    if 2 * self.people > math.prod(self.names):
      raise ValueError(
        f"people={self.people} and as many strangers need {2 * self.people} names; "
        f"names={self.names} gives {math.prod(self.names)}"
      )

  @property
  def vocab(self) -> int:
    return sum(self.names) + len(self.choices) + max(self.choices)

  @property
  def facts(self) -> int:
    return self.people * len(self.choices)

  @property
  def bits(self) -> float:
    """Bits of all the facts, names not counted."""
    return self.people * sum(math.log2(n) for n in self.choices)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Facts:
  """Ids of the name of each person `[N, parts]`, and of the values `[N, attributes]`; int32."""

  names: jax.Array
  values: jax.Array


def sample(key: jax.Array, world: World) -> tuple[Facts, Facts]:
  """N people to learn, and N strangers with names of the same tokens, never to be learned."""
  order, values = jax.random.split(key)
  people, sizes = 2 * world.people, np.array(world.names)
  number = jax.random.permutation(order, math.prod(world.names))[:people]
  parts = jnp.stack(jnp.unravel_index(number, world.names), axis=1)
  starts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
  keys = jax.random.split(values, len(world.choices))
  drawn = [
    jax.random.randint(key, (people,), 0, n) for key, n in zip(keys, world.choices, strict=True)
  ]
  first = sum(world.names) + len(world.choices)
  names, answers = parts + starts[None], first + jnp.stack(drawn, axis=1)
  cut = lambda part: Facts(  # noqa: E731
    names[part].astype(jnp.int32), answers[part].astype(jnp.int32)
  )
  return cut(slice(world.people)), cut(slice(world.people, people))


def questions(facts: Facts, index: jax.Array, world: World) -> tuple[jax.Array, jax.Array]:
  """Questions by number, attribute `index mod A` of person `index div A`.

  Args:
    index: `[B]` int32 in 0..N * A - 1.

  Returns:
    ids: `[B, parts + 1]` int32.   answers: `[B]` int32, ids too.
  """
  person, attribute = index // len(world.choices), index % len(world.choices)
  asked = (sum(world.names) + attribute).astype(jnp.int32)[:, None]
  ids = jnp.concatenate([facts.names[person], asked], axis=1)
  return ids, facts.values[person, attribute]


def bits_by_loss(
  nats: np.ndarray, choices: Sequence[int], prior: Sequence[float] | None = None
) -> float:
  """Bits of values that a model holds, by its cross-entropy.

  N sum over attributes of max(0, log2 |V_a| - mean over people of nats / ln 2). Clipped after the
  mean: clipped fact by fact, the noise of a model that knows nothing would count as bits.

  Args:
    nats: `[N, A]`, of each whole answer: the sum over its tokens, where it has several.
    choices: |V_a|, the numbers of whole answers.
    prior: in place of log2 |V_a|, bits of an answer for who knows all but the names: the entropy of
      values that are not drawn evenly, or what a model that never saw the names needs.
  """
  nats = _table(nats, choices)
  known = np.log2(choices) if prior is None else np.asarray(prior, float)
  if known.shape != (len(choices),):
    raise ValueError(f"prior has shape {list(known.shape)}; it must be [{len(choices)}]")
  return float(len(nats) * np.maximum(known - nats.mean(axis=0) / math.log(2), 0).sum())


def bits_with_names(
  names: np.ndarray, nats: np.ndarray, choices: Sequence[int], all_names: float
) -> float:
  """Bits of names and values that a model holds, as the first paper counts.

  N log2(N0 / e^p1) + N log2(S / e^p2) for p1, p2 the mean nats of a name and of all the values of a
  person, S = prod |V_a|; each part is 0 at least. At most N log2(N0 S / N) can be held: which names
  exist is N log2(N0 / N) bits, as their order is none.

  Args:
    names: `[N]`, nats of each whole name.   nats: `[N, A]`, of each whole answer.
    all_names: N0, names that could be drawn.
  """
  nats, names = _table(nats, choices), np.asarray(names, float)
  if names.shape != nats.shape[:1]:
    raise ValueError(f"names have shape {list(names.shape)}; it must be [{len(nats)}]")
  name = math.log2(all_names) - names.mean() / math.log(2)
  value = float(np.log2(choices).sum()) - nats.sum(axis=1).mean() / math.log(2)
  return float(len(nats) * (max(name, 0.0) + max(value, 0.0)))


def bits_by_accuracy(right: np.ndarray, choices: Sequence[int]) -> tuple[float, float]:
  """Bits of values that a model holds, by which answers are right.

  Args:
    right: `[N, A]` bool.

  Returns:
    estimate: N sum over a of log2 |V_a| times the accuracy above chance, of what is above chance.
    bound: at least so many, by Fano: N sum over a of log2 |V_a| - h(e) - e log2(|V_a| - 1) for the
      error rate e, and nothing where e is not below chance.
  """
  right = _table(right, choices)
  sizes, accuracy = np.asarray(choices, float), right.mean(axis=0)
  above = np.maximum((accuracy - 1 / sizes) / (1 - 1 / sizes), 0)
  e = 1 - accuracy
  entropy = -sum(np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0) for p in (e, accuracy))
  fano = np.where(above > 0, np.log2(sizes) - entropy - e * np.log2(sizes - 1), 0)
  count = len(right)
  return float(count * (np.log2(sizes) * above).sum()), float(count * np.maximum(fano, 0).sum())


def _table(values: np.ndarray, choices: Sequence[int]) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or values.shape[1] != len(choices):
    raise ValueError(f"values have shape {list(values.shape)}; it must be [N, {len(choices)}]")
  return values
