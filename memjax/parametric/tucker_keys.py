"""Tucker decomposed query-key retrieval: product keys whose halves are scored by a learned core."""

import dataclasses

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
    penalty: weight of "singular_loss".
  """

  def __init__(
    self, dim: int, *, keys: int, heads: int, top_k: int, query_dim: int, rank: int, channels: int,
    penalty: float = 0.0, param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim, keys=keys, heads=heads, top_k=top_k, query_dim=query_dim)
    checks.positive(rank=rank, channels=channels)
    if top_k > keys:
      raise ValueError(f"top_k={top_k} exceeds the {keys} keys of a side")
    if not penalty >= 0:
      raise ValueError(f"penalty={penalty!r} must be >= 0")
    self.side, self.top_k, self.penalty = keys, top_k, penalty
    make = {"param_dtype": param_dtype, "rngs": rngs}
    init = nnx.initializers.normal(query_dim**-0.5)
    self.query = Linear(dim, 2 * query_dim, init=init, axes=("embed", "heads"), **make)
    scale = {"eps": 1e-5, "init": nnx.initializers.constant(query_dim**-0.33)}
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
    singular values but the first, of relu(sigma - 0.15)^2.
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
    q = self.query_norm(q.reshape(x.shape[0] * x.shape[1], 2, -1))
    keys = self.key_norm(self.keys[...]).astype(x.dtype)
    return jnp.einsum("tsd,hsand->thsan", q, keys, preferred_element_type=jnp.float32)

  def _sides(self, scores):
    """The k rows and columns of stage 1, `[T, H, 2, k]`, and their R and S, `[T, H, r, k]`."""
    vectors = jnp.stack([self.left[...], self.right[...]], axis=1)
    fixed = jax.lax.stop_gradient(scores)
    _, half = jax.lax.top_k(jnp.einsum("thsan,hsa->thsn", fixed, vectors), self.top_k)
    best = _take(scores, half[:, :, :, None])
    return half, best[:, :, 0], best[:, :, 1]


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
