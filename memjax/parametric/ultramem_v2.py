"""UltraMemV2: a memory beside every block, and a ring of rows that layers share.

"UltraMemV2: Memory Networks Scaling to 120B Parameters with Superior Long-Context Learning", 2025,
arXiv 2508.18756.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, checks, clean, lookup
from memjax.core.layers import Linear
from memjax.parametric.product_keys import pool_of, value_pool
from memjax.parametric.tucker_keys import TuckerKeys, keys_for, slot_order
from memjax.parametric.usage import emit_reads

ACTIVATIONS = {None: lambda h: h, "gelu": jax.nn.gelu}
_STD = 0.02


class UltraMemV2(Memory):
  """A small layer for every block, which reads its own arc of a ring of rows that all layers share.

  (slot, g_1..g_C) = the k best of each head by `TuckerKeys`, over E * N' slots; no softmax
  row = (permutation[slot] mod N' + layer * n^2) mod N           N = layers * n^2 rows of the ring
  a = <Pre[row], x Wp>                                           one number a read; 1 if pre_dim = 0
  y = (concat over c of the sum over reads of a g_c V[row, slice c]) Wo          dv to D, no bias

  N' = floor(n sqrt(share * layers))^2: with share = 1/2 neighbouring layers read much the same rows
  and distant ones none in common. In a model its output is added to that of its block:
  `transformer.Skip(layers=(attention, feed_forward), memory=ultramem_v2, at=1)`. Written by
  gradient only: nothing is stored at run time.

  Against `UltraMem`: one head, norms that start at dk^-0.4, slots of all E groups summed under one
  projection, and the pre-values a (the inner layer of a feed-forward network whose rows are looked
  up). The report's model norms by RMSNorm; its balance loss on keys is there, off by default.
  The ring holds the slices of a row one after the other, `[N * C, dv / C]`.

  Args:
    dim: model width D.
    keys: n; a layer brings n * n rows into the ring.
    layers, layer: how many layers share the ring, and which of them this is, from 0.
    share: the part of the ring that a layer reads, above 0 and at most 1.
    heads, top_k: H heads read k slots each.
    query_dim: dk, the width of each half of a query.
    value_dim: dv, a multiple of channels.   pre_dim: width of Pre; 0: no pre-values.
    rank, channels: r and C of the score.
    expansion: E, a square number; slots a row.
    query_per_rank: a query for each of the r score vectors.
    activation: of a: None, or "gelu".
    penalty, balance: weights of the "singular_loss" and "balance_loss" that are emitted.
    values, pre_values: names of the rings in `context.shared`, as made by `ring`; None, for a
      single layer: tables of its own.
    implementation: of the lookups; see `embedding_bag`.

  State: `Stateless`. Emits "ids" (rows of the ring) and "weights" (the sum of |a g_c| over c) for
  `parametric.usage`. Fixed arrays as in `UltraMem`.
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    keys: int = 256,
    layers: int = 1,
    layer: int = 0,
    share: float = 1.0,
    heads: int = 1,
    top_k: int = 32,
    query_dim: int = 192,
    value_dim: int = 192,
    pre_dim: int = 192,
    rank: int = 2,
    channels: int = 2,
    expansion: int = 1,
    query_per_rank: bool = False,
    activation: str | None = None,
    penalty: float = 0.0,
    balance: float = 0.0,
    values: str | None = None,
    pre_values: str | None = None,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(dim=dim, keys=keys, layers=layers, value_dim=value_dim, expansion=expansion)
    checks.divides("channels", channels, "value_dim", value_dim)
    checks.one_of("activation", activation, ACTIVATIONS)
    _check_ring(layers, layer, share, pre_dim, values, pre_values)
    side = math.isqrt(int(share * layers * keys * keys))
    self.dim, self.channels, self.activation = dim, channels, activation
    self.rows, self.arc, self.first = layers * keys * keys, side * side, layer * keys * keys
    self.value_dim, self.pre_dim, self.names = value_dim, pre_dim, (values, pre_values)
    self.implementation, self.table_sharding = implementation, None
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.search = TuckerKeys(
      dim,
      keys=keys_for(side, expansion),
      heads=heads,
      top_k=top_k,
      query_dim=query_dim,
      rank=rank,
      channels=channels,
      penalty=penalty,
      balance=balance,
      query_per_rank=query_per_rank,
      norm_scale=query_dim**-0.4,
      **make,
    )
    self.permutation = slot_order(expansion * self.arc, rngs)
    own = ring(keys, layers, value_dim, pre_dim=pre_dim, channels=channels, param_dtype=param_dtype)
    self.table = own["values"](rngs=rngs) if values is None else None
    self.pre_table = own["pre_values"](rngs=rngs) if pre_dim and pre_values is None else None
    init = nnx.initializers.normal(dim**-0.5)
    self.pre = Linear(dim, pre_dim, init=init, axes=("embed", "value"), **make) if pre_dim else None
    init = nnx.initializers.normal(value_dim**-0.5)
    self.out = Linear(value_dim, dim, init=init, axes=("value", "embed"), **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    slots, scores = self.search(x)
    place = self.permutation.at[slots].get(mode="promise_in_bounds")
    ids = (place % self.arc + self.first) % self.rows
    if self.pre is not None:
      scores = scores * self._pre_values(ids, self.pre(x), context)[:, :, None]
    ids = emit_reads(ids, scores, valid, self.rows)
    y = self._read(ids, scores, context)
    return self.out(y.astype(x.dtype)), state

  @property
  def _options(self):
    return {"sharding": self.table_sharding, "implementation": self.implementation}

  def _pre_values(self, ids, vectors, context) -> jax.Array:
    """a, `[B, T, b]` float32, from `vectors [B, T, pre_dim]`."""
    shape, means = (self.rows, self.pre_dim), "[layers * keys * keys, pre_dim]"
    table, label = pool_of(self, self.pre_table, "pre_table", self.names[1], context, shape, means)
    a = lookup.dots(table, ids, vectors, label=label, **self._options)
    return ACTIVATIONS[self.activation](a)

  def _read(self, ids, scores, context) -> jax.Array:
    """Sums `[B, T, dv]` float32: one bag for each token and channel."""
    batch, length, bag = ids.shape
    shape = self.rows * self.channels, self.value_dim // self.channels
    means = "[layers * keys * keys * channels, value_dim / channels]"
    table, label = pool_of(self, self.table, "table", self.names[0], context, shape, means)
    ids = ids[:, :, None] * self.channels + jnp.arange(self.channels).reshape(1, 1, -1, 1)
    ids = jnp.minimum(ids, shape[0])  # padding stays padding
    ids, scores = (a.reshape(batch, length * self.channels, bag) for a in (ids, scores))
    y = lookup.bag(table, ids, scores, label=label, **self._options)
    return y.reshape(batch, length, -1)


def ring(
  keys: int, layers: int, value_dim: int = 192, *, pre_dim: int = 192, channels: int = 2,
  param_dtype=jnp.float32,
) -> dict:  # fmt: skip
  """The tables of `layers` such layers, Normal(0, 0.02), for `LanguageModel(shared=...)`.

  Returns:
    Factories by name: "values" `[layers n^2 C, dv / C]`, and if pre_dim > 0 "pre_values"
    `[layers n^2, pre_dim]`. Layers read them with `values="values", pre_values="pre_values"`.
  """
  rows = layers * keys * keys
  make = functools.partial(value_pool, std=_STD, param_dtype=param_dtype)
  tables = {"values": functools.partial(make, rows * channels, value_dim // channels)}
  if pre_dim:
    tables["pre_values"] = functools.partial(make, rows, pre_dim)
  return tables


def _check_ring(layers, layer, share, pre_dim, values, pre_values) -> None:
  if not 0 <= layer < layers:
    raise ValueError(f"layer={layer} of layers={layers} must lie in 0..{layers - 1}")
  if not 0 < share <= 1:
    raise ValueError(f"share={share!r} must be above 0 and at most 1")
  if pre_dim < 0:
    raise ValueError(f"pre_dim={pre_dim} must be >= 0; 0 has no pre-values")
  names = {"values": values} | ({"pre_values": pre_values} if pre_dim else {})
  missing = [name for name, given in names.items() if given is None]
  if layers > 1 and missing:
    raise ValueError(
      f"layers={layers} share a ring, so {' and '.join(missing)} must name entries of "
      "context.shared; parametric.ring makes them"
    )
