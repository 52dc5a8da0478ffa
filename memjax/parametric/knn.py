"""kNN-LM's next-token distribution (Khandelwal et al., ICLR 2020, arXiv 1911.00172), as a teacher.

Exact search over states cached on the fly; the targets that `MLPMemory` learns to imitate.
"""

import jax
import jax.numpy as jnp

from memjax.core import channel
from memjax.core.state import stack_depths


def base_states(model, ids, state, *, layer: int = -1, reset=None, valid=None, context=None):
  """Runs a frozen language model and taps the normalised input of one of its layers.

  Args:
    model: a `LanguageModel` whose body is a `Stack`.
    ids: `[B, T]` int32.   state, reset, valid, context: as in the model's call.
    layer: which layer's input, by depth; -1, the last: "last_ffn_input" for a pattern that ends in
      a feed-forward layer, as released. The paper's best is about 70 % of the depth.

  Returns:
    h: `[B, T, D]`.   logits: `[B, T, vocab]`, of the model.   state. No gradient reaches the model.

  Raises:
    ValueError: the model hands out no such layer's input token by token.
  """
  with channel.muted(), channel.collect() as frame:  # what the base emits is its own
    logits, state = model(ids, state, reset=reset, valid=valid, context=context)
  inputs = {}
  for name, value in frame.emitted.items():
    key, _, rest = name.partition("/")
    if rest == "input":
      depths = stack_depths(key)
      inputs |= {int(key): value} if depths is None else dict(zip(depths, value, strict=True))
  depth = sorted(inputs)[layer] if -len(inputs) <= layer < len(inputs) else None
  if depth is None or inputs[depth].shape[:2] != ids.shape:
    shapes = {depth: list(value.shape) for depth, value in sorted(inputs.items())}
    raise ValueError(
      f"layer={layer} must name a layer of a Stack whose input is [B, T, D] for ids "
      f"{list(ids.shape)}; inputs of layers by depth: {shapes}"
    )
  return *jax.lax.stop_gradient((inputs[depth], logits)), state


def knn_search(
  queries: jax.Array,
  keys: jax.Array,
  neighbours: int,
  *,
  own: jax.Array | None = None,
  valid: jax.Array | None = None,
  chunk: int = 4096,
) -> tuple[jax.Array, jax.Array]:
  """The nearest keys by squared Euclidean distance; exact, `chunk` keys at a time.

  Args:
    queries: `[Q, D]`.   keys: `[M, D]`.
    neighbours: k.
    own: `[Q]` int, the key that is the query's own and is passed over; -1 for none.
    valid: `[M]` bool, the keys that may be found.
    chunk: keys compared at once; `[Q, chunk]` distances are held.

  Returns:
    distances: `[Q, k]` float32, ascending; inf where there are fewer than k keys.
    ids: `[Q, k]` int32.
  """
  _check(queries, keys, neighbours, own, valid, chunk)
  count = keys.shape[0]
  chunk = min(chunk, count)
  allowed = jnp.ones(count, bool) if valid is None else valid
  pad = -count % chunk
  keys = jnp.pad(keys.astype(jnp.float32), ((0, pad), (0, 0))).reshape(-1, chunk, keys.shape[1])
  allowed = jnp.pad(allowed, (0, pad)).reshape(-1, chunk)
  queries = queries.astype(jnp.float32)
  length = jnp.sum(jnp.square(queries), axis=-1)[:, None]

  def merge(best, inputs):
    keys, allowed, start = inputs
    dots = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
    distances = length - 2 * dots + jnp.sum(jnp.square(keys), axis=-1)[None]
    ids = jnp.broadcast_to(start + jnp.arange(chunk, dtype=jnp.int32)[None], distances.shape)
    usable = allowed[None] if own is None else allowed[None] & (ids != own[:, None])
    distances = jnp.where(usable, jnp.maximum(distances, 0), jnp.inf)
    both = [jnp.concatenate(pair, axis=1) for pair in zip(best, (distances, ids), strict=True)]
    nearest, at = jax.lax.top_k(-both[0], neighbours)
    return (-nearest, jnp.take_along_axis(both[1], at, axis=1)), None

  shape = (queries.shape[0], neighbours)
  best = (jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32))
  starts = jnp.arange(0, count + pad, chunk, dtype=jnp.int32)
  return jax.lax.scan(merge, best, (keys, allowed, starts))[0]


def _check(queries, keys, neighbours, own, valid, chunk) -> None:
  if queries.ndim != 2 or keys.ndim != 2 or queries.shape[1] != keys.shape[1] or not len(keys):
    raise ValueError(
      f"queries {list(queries.shape)} must be [Q, D] and keys {list(keys.shape)} [M, D], M >= 1"
    )
  if neighbours < 1 or chunk < 1:
    raise ValueError(f"neighbours={neighbours} and chunk={chunk} must be >= 1")
  for name, array, size in (("own", own, len(queries)), ("valid", valid, len(keys))):
    if array is not None and array.shape != (size,):
      raise ValueError(f"{name} has shape {list(array.shape)}; it must be [{size}]")


def knn_teacher(
  queries: jax.Array,
  keys: jax.Array,
  next_ids: jax.Array,
  *,
  vocab: int,
  neighbours: int = 1024,
  temperature: float = 1.0,
  own: jax.Array | None = None,
  valid: jax.Array | None = None,
  chunk: int = 4096,
) -> jax.Array:
  """Next-token distribution of the nearest contexts: p(y) ~ sum of exp(-d_i / tau) with v_i = y.

  Args:
    queries, keys, neighbours, own, valid, chunk: as in `knn_search`. To make targets for the
      tokens of the store itself give `own`, the position of each.
    next_ids: `[M]` int, the id that followed each stored context.
    vocab: number of ids.
    temperature: tau; 1 in kNN-LM, 16 for targets (distances of the GPT-2-XL space are large).

  Returns:
    `[Q, vocab]` float32; a row sums to 1, or is 0 where no neighbour was found.
  """
  if next_ids.shape != keys.shape[:1]:
    raise ValueError(f"next_ids {list(next_ids.shape)} must be [M] = {list(keys.shape[:1])}")
  if not temperature > 0:
    raise ValueError(f"temperature={temperature!r} must be > 0")
  distances, ids = knn_search(queries, keys, neighbours, own=own, valid=valid, chunk=chunk)
  nearest = jnp.where(jnp.isfinite(distances[:, :1]), distances[:, :1], 0)
  mass = jnp.exp((nearest - distances) / temperature)  # the nearest has 1, a missing one 0
  rows = jnp.arange(len(queries))[:, None]
  p = jnp.zeros((len(queries), vocab)).at[rows, next_ids[ids]].add(mass, mode="drop")
  return jax.lax.stop_gradient(p / jnp.maximum(jnp.sum(p, axis=1, keepdims=True), 1e-30))
