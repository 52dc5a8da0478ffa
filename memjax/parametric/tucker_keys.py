"""Tucker decomposed query-key retrieval: product keys whose halves are scored by a learned core."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Fixed, channel, checks, param
from memjax.core.layers import Linear, RMSNorm
from memjax.core.module import Rest

LEFT, RIGHT, CORE = "left", "right", "core"
ALLOWED = 0.15  # singular values below it are not penalised


class TuckerKeys(nnx.Module):
  """Scores slot (i, j) by G_c[i, j] = sum over a, b of R[i, a] core_c[a, b] S[j, b], and finds k.

  R[i, a] = <q_1, K[row, a, i]>, S[j, b] = <q_2, K[column, b, j]>; q_1 and q_2 from x Wq, shared by
  all heads, each half and each key by an RMSNorm of its own.
  1. rows: the k best of R u, columns: the k best of S v, where u and v are the leading singular
     vectors of the core, summed over its channels: the search by the core's best rank-one form.
  2. the k best of these k * k pairs by the sum of G_c over c, exactly.

  u and v (`left`, `right`) take no gradient. They are recomputed by `refresh_singular_vectors`.

  Args:
    dim: model width D.
    keys: n', keys of each side; n' * n' slots.
    heads, top_k: H heads find k slots each, k <= n'.
    query_dim: dk, the width of each half of a query and of a key.
    rank: r, score vectors of a key.   channels: C, scores of a slot.
    penalty: weight of "singular_loss".   balance: weight of "balance_loss".
    query_per_rank: a query for each of the r score vectors, instead of one for all of them.
    norm_scale: at which the norms of queries and keys start; None: dk^-0.33.
  """

  def __init__(
    self, dim: int, *, keys: int, heads: int, top_k: int, query_dim: int, rank: int, channels: int,
    penalty: float = 0.0, balance: float = 0.0, query_per_rank: bool = False,
    norm_scale: float | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, keys=keys, heads=heads, top_k=top_k, query_dim=query_dim)
    checks.positive(rank=rank, channels=channels)
    if top_k > keys:
      raise ValueError(f"top_k={top_k} exceeds the {keys} keys of a side")
    for name, weight in {"penalty": penalty, "balance": balance}.items():
      if not weight >= 0:
        raise ValueError(f"{name}={weight!r} must be >= 0")
    self.side, self.top_k, self.penalty, self.balance = keys, top_k, penalty, balance
    self.queries = rank if query_per_rank else 1
    make = {"param_dtype": param_dtype, "rngs": rngs}
    init = nnx.initializers.normal(query_dim**-0.5)
    width, start = 2 * self.queries * query_dim, norm_scale or query_dim**-0.33
    self.query = Linear(dim, width, init=init, axes=("embed", "heads"), **make)
    scale = {"eps": 1e-5, "init": nnx.initializers.constant(start)}
    self.query_norm = RMSNorm(query_dim, **scale, **make)
    self.key_norm = RMSNorm(query_dim, **scale, **make)
    shape, axes = (heads, 2, rank, keys, query_dim), ("heads", "half", "rank", "keys", "kv")
    self.keys = param(rngs, init, shape, axes=axes, dtype=param_dtype)
    shape, axes = (heads, channels, rank, rank), ("heads", "rank", "rank", "rank")
    self.core = param(rngs, nnx.initializers.uniform(1.0), shape, axes=axes, dtype=param_dtype)
    left, right = _leading(self.core[...])
    fixed = {"axes": ("heads", "rank"), "kind": Fixed}
    self.left = param(rngs, lambda *_: left, left.shape, **fixed)
    self.right = param(rngs, lambda *_: right, right.shape, **fixed)

  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Searches.

    Args:
      x: `[B, T, D]`.

    Returns:
      slots: `[B, T, H * k]` int32, i * n' + j.   scores: `[B, T, C, H * k]` float32, G_c there.

    Emits "singular_loss" if penalty > 0: penalty times the mean over heads, and over the core's
    singular values but the first, of relu(sigma - 0.15)^2. Emits "balance_loss" if balance > 0:
    balance times the sum over both sides of n' <p, f>, with p the mean over tokens and heads of the
    softmax of stage 1 and f the share of each key among those chosen; 1 a side when all are equal.
    """
    scores = self._scores(x)
    half, rows, columns = self._sides(scores)
    core = self.core[...].astype(jnp.float32)
    total = jnp.einsum("thai,hab,thbj->thij", rows, jnp.sum(core, axis=1), columns)
    tokens, heads, k, _ = total.shape
    _, pair = jax.lax.top_k(jax.lax.stop_gradient(total.reshape(tokens, heads, k * k)), k)
    i, j = pair // k, pair % k
    slots = _take(half[:, :, 0], i) * self.side + _take(half[:, :, 1], j)
    rows, columns = (_take(a, b[:, :, None]) for a, b in ((rows, i), (columns, j)))
    found = jnp.einsum("tham,hcab,thbm->tchm", rows, core, columns)
    if self.penalty > 0 and core.shape[-1] > 1:
      channel.emit("singular_loss", self.penalty * _excess(core))
    batch = x.shape[:2]
    return slots.reshape(*batch, -1), found.reshape(*batch, core.shape[1], -1)

  def _scores(self, x) -> jax.Array:
    """R and S, `[B T, H, 2, r, n']` float32."""
    q = self.query(x)
    q = self.query_norm(q.reshape(x.shape[0] * x.shape[1], 2, self.queries, -1))
    q = jnp.broadcast_to(q, (*q.shape[:2], self.keys.shape[-3], q.shape[3]))
    keys = self.key_norm(self.keys[...]).astype(x.dtype)
    return jnp.einsum("tsad,hsand->thsan", q, keys, preferred_element_type=jnp.float32)

  def _sides(self, scores):
    """The k rows and columns of stage 1, `[T, H, 2, k]`, and their R and S, `[T, H, r, k]`."""
    vectors = jax.lax.stop_gradient(jnp.stack([self.left[...], self.right[...]], axis=1))
    first = jnp.einsum("thsan,hsa->thsn", scores, vectors)
    _, half = jax.lax.top_k(jax.lax.stop_gradient(first), self.top_k)
    if self.balance > 0:
      channel.emit("balance_loss", self.balance * _imbalance(first, half))
    best = _take(scores, half[:, :, :, None])
    return half, best[:, :, 0], best[:, :, 1]


def keys_for(side: int, expansion: int) -> int:
  """Keys of each side for `expansion` slots a row, where side * side rows have one slot each."""
  root = math.isqrt(expansion)
  if root * root != expansion:
    near = f"{root**2} or {(root + 1) ** 2}"
    raise ValueError(f"expansion={expansion} must be the square of an integer: {near}")
  return side * root


def slot_order(slots: int, rngs: nnx.Rngs) -> Fixed:
  """A random permutation of the slots, `[slots]` int32, that stays as it is."""
  init = lambda key, shape, dtype: jax.random.permutation(key, shape[0]).astype(dtype)  # noqa: E731
  return param(rngs, init, (slots,), axes=("keys",), dtype=jnp.int32, kind=Fixed)


def _take(values: jax.Array, at: jax.Array) -> jax.Array:
  at = jnp.broadcast_to(at, (*values.shape[:-1], at.shape[-1]))
  return jnp.take_along_axis(values, at, axis=-1, mode="promise_in_bounds")


def _leading(core: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Leading left and right singular vectors `[..., H, r]` of `core [..., H, C, r, r]` summed over
  C, with the sign that the decomposition gives."""
  total = jnp.sum(core.astype(jnp.float32), axis=-3)
  left, _, right = jnp.linalg.svd(total, full_matrices=False)
  return left[..., :, 0], right[..., 0, :]


def _excess(core: jax.Array) -> jax.Array:
  values = jnp.linalg.svd(jnp.sum(core, axis=-3), compute_uv=False)[..., 1:]
  return jnp.mean(jnp.square(jax.nn.relu(values - ALLOWED)))


def _imbalance(scores: jax.Array, chosen: jax.Array) -> jax.Array:
  """Sum over sides of n' <p, f>, from scores `[T, H, 2, n']` and the keys chosen `[T, H, 2, k]`."""
  tokens, heads, sides, keys = scores.shape
  likely = jnp.mean(jax.nn.softmax(scores, axis=-1), axis=(0, 1))
  side = jnp.broadcast_to(jnp.arange(sides).reshape(1, 1, -1, 1), chosen.shape)
  count = jnp.zeros((sides, keys)).at[side, chosen].add(1, mode="promise_in_bounds")
  return keys * jnp.sum(likely * count) / (tokens * heads * chosen.shape[-1])


def refresh_singular_vectors(params: dict[str, jax.Array], rest: Rest) -> Rest:
  """Recomputes u and v of every `TuckerKeys` of a model from its present core.

  Of the two signs (u, v) and (-u, -v) the one nearer to the last is kept: the other would pick
  other rows and columns. So u and v are saved with the model. `make_train_step` does this after
  every update.

  Args:
    params, rest: as returned by `core.split(model)`.
  """
  arrays = {**rest.arrays, **params}
  fresh = dict(rest.arrays)
  for name in rest.arrays:
    home = name.removesuffix(LEFT)
    names = [home + last for last in (LEFT, RIGHT, CORE)]
    if name.split("/")[-1] != LEFT or not all(one in arrays for one in names):
      continue
    old = [arrays[one] for one in names[:2]]
    new = _leading(arrays[names[2]])
    near = sum(jnp.sum(a * b, axis=-1, keepdims=True) for a, b in zip(old, new, strict=True))
    fresh |= {one: jnp.where(near < 0, -a, a) for one, a in zip(names[:2], new, strict=True)}
  return dataclasses.replace(rest, arrays=fresh)
