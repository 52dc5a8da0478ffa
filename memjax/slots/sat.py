"""A spatially-aware transformer: an episodic store whose entries know their time and their place.

Cho, Yoon, Ahn, "Spatially-Aware Transformer for Embodied Agents", ICLR 2024, arXiv 2402.15160.
Compared with the authors' code (junmokane/spatially-aware-transformer).

B batch, T items in a call, Q queries, E entries, P places, D model width, c entries of a chunk.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import Fixed, Memory, as_state, bounded, channel, checks, clean, leaf
from memjax.core.layers import LayerNorm
from memjax.core.usage import measure_slots
from memjax.slots import attending, chunk_read, ledger, store
from memjax.slots.ledger import POLICIES, Ledger
from memjax.slots.places import PlaceEmbedding

CHUNKINGS = ("time", "place")
LARGEST = 1e15  # of the numbers of items and queries: their products stay finite


@as_state
class SATState:
  """Entries `[B, E, D]` float32 as they came, zero where there is none, and their `Ledger`."""

  entries: jax.Array = leaf("slots", "embed")
  ledger: Ledger


class ReadLayer(nnx.Module):
  """One layer of queries `q [B, Q, D]` that see each other and read chunks.

  q = q + attention(norm(q));  q = q + ChunkRead(norm(q));  q = q + W2 relu(W1 norm(q))
  """

  def __init__(self, dim: int, *, heads: int, top_k: int, hidden: int, param_dtype, rngs: nnx.Rngs):
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.norms = nnx.List([LayerNorm(dim, **make) for _ in range(3)])
    self.among = attending.Heads(dim, heads, bias=True, **make)
    self.reading = chunk_read.ChunkRead(dim, heads=heads, top_k=top_k, **make)
    self.up = attending.linear(dim, hidden, ("embed", "mlp"), param_dtype, rngs, bias=True)
    self.down = attending.linear(hidden, dim, ("mlp", "embed"), param_dtype, rngs, bias=True)

  def __call__(self, q: jax.Array, chunks: chunk_read.Chunks) -> tuple[jax.Array, chunk_read.Reads]:
    """`q`, and what it read."""
    x = self.norms[0](q)
    heads = self.among
    query, key, value = (heads.split(a, x) for a in (heads.query, heads.key, heads.value))
    scores = attending.products(query, key) * query.shape[-1] ** -0.5
    q = q + heads.mix(scores, value)[0]
    read, reads = self.reading(self.norms[1](q), chunks)
    q = q + read
    return q + self.down(jax.nn.relu(self.up(self.norms[2](q)))), reads


class SpatiallyAwareTransformer(Memory):
  """Queries read the E entries of an episode by chunks of one time or of one place.

      m_e = entry_e + sinusoid(age_e) + place_embedding(place_e)
      q = layers(q): attention among the queries, `ChunkRead` of m, a feed-forward network

  `write` stores items and `read` asks a set of queries, for whole batches. The paper's answer is a
  linear layer on `read(...).mean(axis=1)`; its convolutions, which make items of images, are the
  caller's. Over `[B, T, D]`: each item is a query of its own on what was stored before it, giving
  `y [B, T, D]`, and is then stored, unless `context.tokens["question"]` (`[B, T]` bool, optional)
  says that it only asks. `context.tokens["place"]`, `[B, T]` int32, says where an item was, for
  more than one place; one outside 0..P-1 makes the entry NaN. `context.tokens["policy"]`,
  `[B, T]` int32, ids of `POLICIES`, replaces `policy`: that is how an `AdaptiveMemoryAllocator`
  chooses one a row.

  The age of an entry counts the items that came after it. In the authors' multi-task model an
  entry's time is its place in their order of the entries kept; in the other two it is the age.

  Differences: the authors choose the entries of an episode beforehand; here they come one by one.
  Where chunks do not divide the entries, those missing are masked; there zeros are read. In an
  empty memory nothing is read. A place's last chunk may be short; their generator for faces drops
  the entries in a chunk less than half full. Not built: dropout and positions in a chunk, which
  their settings leave out.

  Args:
    dim: D, even.
    capacity: E.
    places: P.
    policy: one of "fifo", "lifo", "lvfo", "mvfo", "place", which entry makes room: `ledger.slot`.
      With "place" every group of places has a queue of its own of E / groups entries (SAT-PM).
    chunking: "time" (-TH) or "place" (-PH), the entries of a group of places.
    chunk, top_k: c, and how many chunks a query reads; `chunk=1, top_k=capacity`: all entries.
    layers, heads, hidden: of the read.
    place: embeds places: "sine", "learned", "fourier" or None.
    grid: rows and columns of places, P = rows * columns: `PlaceEmbedding`.
    groups: the group of each place, from 0; None: each its own.

  Measures (`core.usage`) `read_peak` and `slots_read` of every layer, `slots_written`, and
  `written_peak`, the share of items that are stored.

  State: `SATState`.
  """

  residual = False

  def __init__(
    self, dim: int = 128, *, capacity: int, places: int = 1, policy: str = "fifo",
    chunking: str = "time", chunk: int = 32, top_k: int = 4, layers: int = 4, heads: int = 2,
    hidden: int = 128, place: str | None = "sine", grid: tuple[int, int] | None = None,
    groups: Sequence[int] | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, capacity=capacity, places=places, chunk=chunk, top_k=top_k)
    checks.positive(layers=layers, hidden=hidden)
    checks.one_of("policy", policy, POLICIES)
    checks.one_of("chunking", chunking, CHUNKINGS)
    self.dim, self.capacity, self.places, self.policy = dim, capacity, places, policy
    self.chunking, self.chunk = chunking, chunk
    group, self.groups = _groups(groups, places)
    if policy == "place":
      checks.divides("groups", self.groups, "capacity", capacity)
    by_place = chunk_read.most_chunks(capacity, self.groups, chunk)
    count = by_place if chunking == "place" else -(-capacity // chunk)
    if top_k > count:
      raise ValueError(f"top_k={top_k} exceeds the {count} chunks; use top_k={count}")
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.place = PlaceEmbedding(places, dim, kind=place, grid=grid, **make)
    self.group = Fixed(group, axes=("rows",))
    make |= {"heads": heads, "top_k": top_k, "hidden": hidden}
    self.layers = nnx.List([ReadLayer(dim, **make) for _ in range(layers)])

  def init_state(self, batch: int) -> SATState:
    entries = jnp.zeros((batch, self.capacity, self.dim))
    return SATState(entries, ledger.empty(batch, self.capacity))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    tokens = {} if context is None else context.tokens
    question = tokens.get("question")
    checks.flag('context.tokens["question"]', question, x.shape[:2])
    x = bounded(clean(x, valid), LARGEST)
    stored = jnp.ones(x.shape[:2], bool) if valid is None else valid
    stored = stored if question is None else stored & ~question
    names = 'context.tokens["place"]', 'context.tokens["policy"]'
    given = tokens.get("place"), tokens.get("policy")
    walk, past = self._come(x, state, stored, reset, given, names)

    def ask(q, held):
      y, reads = self._reason(q[:, None], store.take(past, held.source), held.ledger)
      return y[:, 0], [a[:, 0] for a in reads]

    y, reads = store.ask(ask, x, walk.before)
    self._measure(reads, valid if question is None else question)
    return y, self._keep(walk, past)

  def write(
    self, items: jax.Array, state: SATState, *, place=None, policy=None, valid=None
  ) -> SATState:
    """Stores items, in order.

    Args:
      items: `[B, T, D]`.
      place: `[B, T]` int32; may be None where there is one place.
      policy: `[B]` int32, ids of `POLICIES`, in place of the memory's own.
      valid: `[B, T]` bool; other items are left out.
    """
    checks.call(self, items, state, None, valid, dim=self.dim)
    if policy is not None:
      _check_ids("policy", policy, items.shape[:1], "B")
      policy = jnp.broadcast_to(policy[:, None], items.shape[:2])
    stored = jnp.ones(items.shape[:2], bool) if valid is None else valid
    items = bounded(clean(items, valid), LARGEST)
    walk, past = self._come(items, state, stored, None, (place, policy), ("place", "policy"))
    return self._keep(walk, past)

  def read(self, queries: jax.Array, state: SATState) -> jax.Array:
    """`[B, Q, D]` for queries `[B, Q, D]`, which also attend to each other."""
    checks.call(self, queries, state, None, None, dim=self.dim)
    y, reads = self._reason(bounded(queries, LARGEST), state.entries, state.ledger)
    self._measure(reads, jnp.broadcast_to(state.ledger.clock[:, None] > 0, queries.shape[:2]))
    return y

  def _come(self, x, state, stored, reset, given, names):
    """The walk of items `[B, T, D]`, and the state's entries and they, `[B, E + T, D]` float32."""
    (place, policy), shape = given, x.shape[:2]
    if place is None and self.places > 1:
      got = f"{names[0]} is not given; it must be [B, T] = {list(shape)} for places={self.places}"
      raise ValueError(got)
    place = jnp.zeros(shape, jnp.int32) if place is None else place
    own = jnp.full(shape, POLICIES.index(self.policy), jnp.int32)
    policy = own if policy is None else policy
    for name, ids in zip(names, (place, policy), strict=True):
      _check_ids(name, ids, shape, "B, T")
    known = (place >= 0) & (place < self.places)
    items = jnp.where(known[..., None], x.astype(jnp.float32), jnp.nan)
    place, groups = jnp.where(known, place, 0), (self.group[...], self.groups)
    walk = ledger.walk(state.ledger, place, policy, stored, groups=groups, reset=reset)
    if channel.measuring():
      written = jax.nn.one_hot(walk.slots, self.capacity)
      measure_slots(written=written[:, :, None], valid=stored)
    return walk, jnp.concatenate([state.entries, items], axis=1)

  def _keep(self, walk, past) -> SATState:
    filled = walk.after.ledger.filled
    entries = jnp.where(filled[..., None], store.take(past, walk.after.source), 0)
    return SATState(entries, walk.after.ledger)

  def _reason(self, q, entries, ledger: Ledger):
    """`[B, Q, D]`, and for whoever measures the weights `[B, Q, H, E]` of each layer."""
    filled, times = ledger.filled, ledger.times
    if self.chunking == "time":
      table = chunk_read.by_time(times, self.chunk)
    else:
      group = self.group[...][ledger.places]
      table = chunk_read.by_group(times, group, self.groups, self.chunk)
    when = attending.sinusoid(jnp.where(filled, ledger.ages, 0), self.dim)
    entries = (entries + when + self.place(ledger.places)).astype(q.dtype)
    chunks, reads = chunk_read.gather(entries, filled, table), []
    for layer in self.layers:
      q, found = layer(q, chunks)
      reads += [chunk_read.spread(table, found, self.capacity)] if channel.measuring() else []
    return q, reads

  def _measure(self, reads, asked):
    for index, weights in enumerate(reads):
      with channel.scope(f"layer{index}"):
        measure_slots(read=weights, valid=asked)


def _groups(groups, places: int) -> tuple[jax.Array, int]:
  """The group of each place `[P]`, and how many there are."""
  found = np.arange(places) if groups is None else np.asarray(groups)
  if found.shape != (places,) or sorted(set(found.tolist())) != list(range(found.max() + 1)):
    raise ValueError(
      f"groups={groups!r} must give each of places={places} a group, numbered from 0 without gaps"
    )
  return jnp.asarray(found, jnp.int32), int(found.max()) + 1


def _check_ids(name: str, ids, shape, axes: str) -> None:
  got = f"{name} is {ids.dtype}{list(ids.shape)}; it must be int [{axes}] = {list(shape)}"
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(got)
  if tuple(ids.shape) != tuple(shape):
    raise ValueError(got)
