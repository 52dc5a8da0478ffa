"""Shortest path (after "MEMO", Banino et al. 2020, arXiv 2001.10913): the edges of a graph, then
the nodes on the way from one to another.

    u v SEP  u v SEP ..  ASK s t ANSWER n1 .. n(p-2)

Each of N nodes has K edges to others, in random order; the only shortest path from s to t has p
edges. Its first node between them is due at ANSWER, the next at each node that follows.

Ids: 0 padding, 1 SEP, 2 ASK, 3 ANSWER, then the names, drawn anew for each graph. (s, t) is drawn
among all pairs that have such a path; a graph without one is drawn again, up to `TRIES` times, and
after that nothing is due: settings for which paths of p edges are rare are slow too.
Difference: of the paper's graphs their sizes alone are known, 10 or 20 nodes with 2, 3 or 5 edges
each; the drawing is ours.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.tasks import draw
from memjax.tasks.task import IGNORE, PAD, Batch, Task, field

SEP, ASK, ANSWER, FIRST = 1, 2, 3, 4
TRIES = 64


@dataclasses.dataclass(frozen=True)
class ShortestPath(Task):
  """See the module.

  Attributes:
    nodes: N.   degree: K edges from each.   hops: p edges of the path.   names: ids of nodes.

  Meta: `hop [T]`, which node of the path is due, from 1; 0 elsewhere.

  Raises:
    ValueError: too many edges for the nodes, or too few names.
  """

  nodes: int = 10
  degree: int = 2
  hops: int = 2
  names: int = 1024
  number = 51

  def __post_init__(self):
    checks.positive(nodes=self.nodes, degree=self.degree, names=self.names)
    if not 2 <= self.hops < self.nodes:
      raise ValueError(f"hops={self.hops} must lie in 2..{self.nodes - 1}, for nodes={self.nodes}")
    if self.degree >= self.nodes - 1:
      raise ValueError(
        f"degree={self.degree} must be below {self.nodes - 1}: with nodes={self.nodes} all are "
        "neighbours otherwise"
      )
    if self.nodes > self.names:
      raise ValueError(f"names={self.names} must be at least nodes={self.nodes}")
    if self.degree**self.hops >= 2**31:
      raise ValueError(f"degree={self.degree} ** hops={self.hops} paths are more than int32 counts")

  @property
  def vocab(self) -> int:  # type: ignore[override]
    return FIRST + self.names

  @property
  def told(self) -> int:
    """Tokens before the question."""
    return 3 * self.nodes * self.degree

  @property
  def chance(self) -> float:
    return 1 / self.names

  @property
  def floor(self) -> float:
    """Of a reader of single edges, at the first node."""
    return 1 / self.degree

  @property
  def state_bits(self) -> float:
    return self.nodes * self.degree * 2 * math.log2(self.nodes)

  def example(self, key: jax.Array) -> Batch:
    n, k, p = self.nodes, self.degree, self.hops

    def again(carry):
      number, _, _ = carry
      return (number + 1, *self._graph(jax.random.fold_in(field(key, 0), number)))

    first = (1, *self._graph(jax.random.fold_in(field(key, 0), 0)))
    retry = lambda c: (c[0] < TRIES) & ~jnp.any(c[2])  # noqa: E731
    _, successors, fits = jax.lax.while_loop(retry, again, first)
    chosen = jnp.argmax(
      jnp.where(fits.reshape(-1), jax.random.bits(field(key, 1), (n * n,)) | 1, 0)
    )
    source, target = chosen // n, chosen % n

    powers = self._walks(successors)
    path = [source]
    for left in reversed(range(1, p)):  # the only successor from which t is `left` edges away
      leads = powers[left][successors[path[-1]], target] > 0
      path.append(successors[path[-1]][jnp.argmax(leads)])
    name = FIRST + draw.distinct(field(key, 2), self.names, n)
    edges = jnp.stack([jnp.repeat(jnp.arange(n), k), successors.reshape(-1)], axis=1)
    edges = name[edges[draw.distinct(field(key, 3), n * k, n * k)]]
    told = jnp.concatenate([edges, jnp.full((n * k, 1), SEP)], axis=1).reshape(-1)
    between = name[jnp.stack(path[1:])]
    asked = jnp.stack([jnp.int32(ASK), name[source], name[target], jnp.int32(ANSWER)])
    inputs = jnp.concatenate([told, asked, between[:-1]]).astype(jnp.int32)
    due = jnp.where(jnp.any(fits), between, IGNORE)
    targets = jnp.full(len(inputs), IGNORE, jnp.int32).at[1 - p :].set(due)
    hop = jnp.zeros(len(inputs), jnp.int32).at[1 - p :].set(jnp.arange(1, p))
    return Batch(inputs, targets, targets != IGNORE, jnp.int32(len(inputs)), {"hop": hop})

  def _graph(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Successors `[N, K]` of each node, and from where to where one shortest path of p edges leads
    alone, `[N, N] bool`."""
    n, k = self.nodes, self.degree
    pick = lambda key: draw.distinct(key, n - 1, k)  # noqa: E731
    others = jax.vmap(pick)(jax.random.split(key, n))
    successors = others + (others >= jnp.arange(n)[:, None])
    *shorter, longest = self._walks(successors)
    return successors, (longest == 1) & (sum(shorter) == 0)

  def _walks(self, successors: jax.Array) -> list[jax.Array]:
    """Numbers of walks of 0..p edges between any two nodes, `[N, N] int32`."""
    found = [jnp.eye(self.nodes, dtype=jnp.int32)]
    for _ in range(self.hops):  # a walk is an edge and a shorter walk
      found.append(jnp.sum(found[-1][successors], axis=1))
    return found

  def oracle(self, inputs: jax.Array, length: jax.Array) -> jax.Array:
    """By distances to t, which edges lower one after another."""
    del length
    edges = inputs[: self.told].reshape(-1, 3)
    tail, head = edges[:, 0], edges[:, 1]
    asked = inputs[self.told :]
    far = jnp.full(self.vocab, self.nodes, jnp.int32).at[asked[2]].set(0)
    for _ in range(self.hops):
      far = far.at[tail].min(far[head] + 1)
    here = jnp.concatenate([asked[1:2], asked[4:]])  # s, then each node of the path
    leads = (tail[None] == here[:, None]) & (far[head][None] + 1 == far[here][:, None])
    due = jnp.where(jnp.any(leads, axis=1), head[jnp.argmax(leads, axis=1)], IGNORE)
    nothing = jnp.full(self.told + 3, IGNORE, jnp.int32)
    return jnp.concatenate([nothing, due])

  def closed_book(self, batch: Batch) -> Batch:
    """The question without the edges."""
    return dataclasses.replace(batch, inputs=batch.inputs.at[:, : self.told].set(PAD))
