"""What product-key layers share: from activations to slots and weights, and the table of values."""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Table, checks, lookup, param
from memjax.core.layers import LayerNorm, Linear, RMSNorm, dropout
from memjax.parametric.batch_norm import BatchNorm
from memjax.parametric.usage import emit_reads

NORMS = {"layer": LayerNorm, "rms": RMSNorm}
GATES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def uniform(bound: float):
  """An initialiser: uniform in (-bound, bound)."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def value_pool(
  rows: int, dim: int, *, std: float | None = None, param_dtype=jnp.float32, rngs: nnx.Rngs
) -> Table:
  """A table of values `[rows, dim]` that several layers may read: Normal(0, std or dim^-1/2).

  `LanguageModel(shared={"values": functools.partial(value_pool, keys**2, dim)})` owns it; each
  `MemoryPlus(..., values="values")` reads it.
  """
  checks.positive(rows=rows, dim=dim)
  init, axes = nnx.initializers.normal(std or dim**-0.5), ("rows", "value")
  return param(rngs, init, (rows, dim), axes=axes, dtype=param_dtype, kind=Table)


def pool_of(
  memory, own: Table | None, label: str, name: str | None, context, shape: tuple[int, int],
  means: str,
) -> tuple[jax.Array, str]:  # fmt: skip
  """The table that a layer reads, and the label of its lookups.

  Args:
    memory: the layer, for messages.
    own, label: its own table, if it has one, and the attribute that holds it.
    name: otherwise, of an entry of `context.shared`.
    shape: that it must have.   means: how the layer's arguments give this shape.
  """
  if own is not None:
    return own[...], label
  assert name is not None  # a table or a name
  table = checks.context_entry(memory, context, "shared", name)
  if table.shape != shape:
    raise ValueError(
      f"context.shared[{name!r}] has shape {list(table.shape)}; this layer reads {means} = "
      f"{list(shape)}"
    )
  return table, lookup.SHARED + name


class ProductKeys(nnx.Module):
  """Queries, product keys, and the weights of the k slots that each head finds.

  Args:
    dim: model width D.
    keys: n, keys of each half; N = n * n slots.
    heads, top_k: H heads read k slots each.
    query_dim: dk, the width of a query, both halves together.
    norm: of the queries. "batch": `BatchNorm` over all H * dk features; "layer", "rms": over the
      dk / 2 features of a half, one scale for all; None.
    norm_keys: RMSNorm over each key as well, one scale for all.
    temperature: scores are divided by it before the gate.
    gate: from scores to weights: "softmax" over the k of a head, or "sigmoid" of each.
    key_bound: keys start uniform in (-key_bound, key_bound).
    query_init: initialiser of the query matrix.
    dropout: rate on the queries.
    implementation: of the search; see `product_key_topk`.
  """

  def __init__(
    self,
    dim: int,
    *,
    keys: int,
    heads: int,
    top_k: int,
    query_dim: int,
    norm: str | None,
    norm_keys: bool = False,
    temperature: float = 1.0,
    gate: str = "softmax",
    key_bound: float,
    query_init,
    dropout: float = 0.0,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    _check(dim, keys, heads, top_k, query_dim, norm, temperature, dropout)
    checks.one_of("gate", gate, GATES)
    self.gate = gate
    self.rows, self.heads, self.top_k, self.temperature = keys * keys, heads, top_k, temperature
    self.dropout, self.implementation, self.table_sharding = dropout, implementation, None
    make = {"param_dtype": param_dtype, "rngs": rngs}
    width, bias_init = heads * query_dim, uniform(dim**-0.5)
    self.query = Linear(
      dim, width, bias=True, init=query_init, bias_init=bias_init, axes=("embed", "heads"), **make
    )
    shape, axes = (heads, 2, keys, query_dim // 2), ("heads", "half", "keys", "kv")
    self.keys = param(rngs, uniform(key_bound), shape, axes=axes, dtype=param_dtype)
    self.batch_norm = BatchNorm(width, **make) if norm == "batch" else None
    self.norm = NORMS[norm](query_dim // 2, **make) if norm in NORMS else None
    self.key_norm = RMSNorm(query_dim // 2, **make) if norm_keys else None

  def __call__(self, x: jax.Array, valid: jax.Array | None, key: jax.Array | None):
    """Searches.

    Args:
      x: `[B, T, D]`.   valid: `[B, T]` bool or None, for batch statistics.   key: for dropout.

    Returns:
      ids: `[B, T, H * k]` int32.   weights: the same shape, float32; those of a head sum to 1 if
        the gate is a softmax.
    """
    scores, ids = lookup.search(
      self._queries(x, valid, key),
      self._keys(x.dtype),
      self.top_k,
      sharding=self.table_sharding,
      implementation=self.implementation,
    )
    weights = GATES[self.gate](scores / self.temperature)
    shape = (*x.shape[:2], self.heads * self.top_k)
    return ids.reshape(shape), weights.reshape(shape)

  def _queries(self, x, valid, key):
    q = self.query(x)
    if self.batch_norm is not None:
      q = self.batch_norm(q, valid)
    if self.norm is not None:
      q = self.norm(q.reshape(*x.shape[:2], self.heads, 2, -1))
    return dropout(q, self.dropout, key).reshape(*x.shape[:2], self.heads, -1)

  def _keys(self, dtype):
    keys = self.keys[...]
    return (keys if self.key_norm is None else self.key_norm(keys)).astype(dtype)


def _check(dim, keys, heads, top_k, query_dim, norm, temperature, dropout) -> None:
  checks.positive(dim=dim, keys=keys, heads=heads, top_k=top_k, query_dim=query_dim)
  checks.fraction(query_dropout=dropout)
  checks.one_of("query_norm", norm, ("batch", *NORMS, None))
  if top_k > keys:
    raise ValueError(f"top_k={top_k} exceeds keys={keys}; a head can read at most {keys} slots")
  if query_dim % 2:
    near = f"{query_dim - 1} or {query_dim + 1}"
    raise ValueError(f"query_dim={query_dim} has two equal halves, so it must be even: {near}")
  if not temperature > 0:
    raise ValueError(f"temperature={temperature!r} must be > 0")


class Values(nnx.Module):
  """The values of a layer: a table of its own, or an entry of `context.shared`.

  Args:
    rows, dim: N and dv.
    name: None: a table of its own (`table`); otherwise the name of the shared entry.
    implementation: of the weighted sum; see `embedding_bag`.
  """

  def __init__(
    self,
    rows: int,
    dim: int,
    *,
    name: str | None = None,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(rows=rows, value_dim=dim)
    if not (name is None or isinstance(name, str)):
      got = type(name).__name__
      raise TypeError(
        f"values is {got}; it must be the name of an entry of context.shared, or None"
      )
    self.rows, self.dim, self.name, self.implementation = rows, dim, name, implementation
    self.table_sharding = None
    own = name is None
    self.table = value_pool(rows, dim, param_dtype=param_dtype, rngs=rngs) if own else None

  def __call__(self, ids: jax.Array, weights: jax.Array, valid: jax.Array | None, context):
    """Weighted sums of rows, over slots and heads: `[B, T, b]` twice to `[B, T, dv]` float32.

    Emits what is read, for `parametric.usage`.
    """
    ids = emit_reads(ids, weights, valid, self.rows)
    shape, means = (self.rows, self.dim), "[keys * keys, value_dim]"
    table, label = pool_of(self, self.table, "table", self.name, context, shape, means)
    options = {"sharding": self.table_sharding, "implementation": self.implementation}
    return lookup.bag(table, ids, weights, label=label, **options)
