"""What product-key layers share: queries and keys to slots and weights, and the table of values."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Table, channel, checks, param
from memjax.core.layers import LayerNorm, Linear, RMSNorm, dropout
from memjax.parametric.batch_norm import BatchNorm
from pallas_kernels.embedding_bag import embedding_bag
from pallas_kernels.product_key_topk import product_key_topk

NORMS = {"layer": LayerNorm, "rms": RMSNorm}


def uniform(bound: float):
  """An initialiser: uniform in (-bound, bound)."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def value_pool(rows: int, dim: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs) -> Table:
  """A table of values `[rows, dim]`, Normal(0, dim^-1/2), that several layers may read.

  `LanguageModel(shared={"values": functools.partial(value_pool, keys**2, dim)})` owns it; each
  `MemoryPlus(..., values="values")` reads it.
  """
  checks.positive(rows=rows, dim=dim)
  return param(rngs, nnx.initializers.normal(dim**-0.5), (rows, dim), axes=("rows", "value"), dtype=param_dtype, kind=Table)


def own_values(keys: int, dim: int, name: str | None, param_dtype, rngs: nnx.Rngs) -> Table | None:
  """A layer's own table; None where it reads the shared entry `name`."""
  if name is not None and not isinstance(name, str):
    raise TypeError(f"values={name!r} must be the name of an entry of context.shared, or None for a table of the layer's own")
  return value_pool(keys**2, dim, param_dtype=param_dtype, rngs=rngs) if name is None else None


def table_of(memory, context) -> jax.Array:
  """The values `[N, dv]` that a layer reads: its own `values`, or `context.shared[memory.shared_values]`."""
  if memory.values is not None:
    return memory.values[...]
  values = checks.context_entry(memory, context, "shared", memory.shared_values)
  expected = (memory.search.rows, memory.value_dim)
  if values.shape != expected:
    raise ValueError(
      f"context.shared[{memory.shared_values!r}] has shape {list(values.shape)}; "
      f"{type(memory).__name__} reads [keys * keys, value_dim] = {list(expected)}"
    )
  return values


class ProductKeys(nnx.Module):
  """Queries, product keys, and the softmax over the slots found: `[B, T, D]` to ids and weights of H * k slots a token.

  Args:
    dim: model width D.
    keys: n, keys of each half; N = n * n slots.
    heads, top_k: H heads read k slots each.
    query_dim: dk, the width of a query, both halves together.
    norm: of the queries. "batch": `BatchNorm` over H * dk features; "layer", "rms": over each half; None.
    norm_keys: RMSNorm with a learned scale over each key as well.
    temperature: scores are divided by it before the softmax.
    key_bound: keys start uniform in (-key_bound, key_bound).
    query_init: initialiser of the query matrix.
    dropout: rate on the queries; needs `context.key`.
    implementation: of the search; see `product_key_topk`.
  """

  def __init__(
    self, dim: int, *, keys: int, heads: int, top_k: int, query_dim: int, norm: str | None, key_bound: float, query_init,
    norm_keys: bool = False, temperature: float = 1.0, dropout: float = 0.0, implementation: str | None = None,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    _check(dim, keys, heads, top_k, query_dim, norm, temperature)
    checks.fraction(query_dropout=dropout)
    self.rows, self.heads, self.top_k, self.temperature = keys * keys, heads, top_k, temperature
    self.dropout, self.implementation = dropout, implementation
    self.query = Linear(
      dim, heads * query_dim, bias=True, init=query_init, bias_init=uniform(dim**-0.5), axes=("embed", "heads"),
      param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    shape, axes = (heads, 2, keys, query_dim // 2), ("heads", "half", "rows", "kv")
    self.keys = param(rngs, uniform(key_bound), shape, axes=axes, dtype=param_dtype)
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.batch_norm = BatchNorm(heads * query_dim, **make) if norm == "batch" else None
    self.norm = NORMS[norm](query_dim // 2, **make) if norm in NORMS else None
    self.key_norm = RMSNorm(query_dim // 2, **make) if norm_keys else None

  def __call__(self, x: jax.Array, valid: jax.Array | None, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`x [B, T, D]` to ids `[B, T, H * k]` int32 and weights `[B, T, H * k]` float32 that sum to 1 in each head."""
    scores, ids = product_key_topk(
      self._queries(x, valid, key), self._keys(x.dtype), self.top_k, implementation=self.implementation
    )
    weights = jax.nn.softmax(scores / self.temperature, axis=-1)
    shape = (*x.shape[:2], self.heads * self.top_k)
    return ids.reshape(shape), weights.reshape(shape)

  def _queries(self, x, valid, key):
    q = self.query(x)
    if self.batch_norm is not None:
      q = self.batch_norm(q, valid)
    if self.norm is not None:
      q = self.norm(q.reshape(*x.shape[:2], self.heads, 2, -1))
    return dropout(q, self.dropout, key).reshape(x.shape[0] * x.shape[1], self.heads, -1)

  def _keys(self, dtype):
    keys = self.keys[...]
    return (keys if self.key_norm is None else self.key_norm(keys)).astype(dtype)


def _check(dim, keys, heads, top_k, query_dim, norm, temperature) -> None:
  checks.positive(dim=dim, keys=keys, heads=heads, top_k=top_k, query_dim=query_dim)
  if top_k > keys:
    raise ValueError(f"top_k={top_k} exceeds keys={keys}; a half holds {keys} keys, so top_k is at most {keys}")
  if query_dim % 2:
    raise ValueError(f"query_dim={query_dim} must be even (two halves): {query_dim - 1} or {query_dim + 1}")
  checks.one_of("query_norm", norm, ("batch", *NORMS, None))
  if not temperature > 0:
    raise ValueError(f"temperature={temperature!r} must be > 0")


def read(memory, x: jax.Array, valid: jax.Array | None, context, key: jax.Array | None = None) -> jax.Array:
  """`[B, T, D]` to the weighted sums of values `[B, T, dv]`, summed over heads, in the dtype of x.

  Emits "ids" `[B, T, H * k]` (N for a token that is not valid) and "weights" for `usage`.
  """
  search, values = memory.search, table_of(memory, context)
  ids, weights = search(x, valid, key)
  if channel.collecting():
    channel.emit("ids", ids if valid is None else jnp.where(valid[..., None], ids, search.rows))
    channel.emit("weights", jax.lax.stop_gradient(weights))
  flat = functools.partial(jnp.reshape, shape=(-1, ids.shape[-1]))
  y = embedding_bag(values, flat(ids), flat(weights), implementation=search.implementation)
  return y.reshape(*x.shape[:2], -1).astype(x.dtype)
