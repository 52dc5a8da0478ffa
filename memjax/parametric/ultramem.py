"""UltraMem: a memory beside the feed-forward layers, with Tucker-decomposed keys.

Huang et al., "Ultra-Sparse Memory Network", ICLR 2025, arXiv 2411.12364.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, Table, checks, clean, lookup, param
from memjax.core.layers import Linear
from memjax.parametric.tucker_keys import TuckerKeys, keys_for, slot_order
from memjax.parametric.usage import emit_reads


class UltraMem(Memory):
  """A table of N = keys * keys rows behind E * N virtual slots, searched by a bilinear score.

  (slot, g_1..g_C) = the k best of each head by `TuckerKeys`, over E * N = n' * n' slots; no softmax
  p = permutation[slot];  row = p mod N;  group e = p div N
  acc[e, c] = sum over the reads of group e of g_c V[row, slice c]      c-th of C slices of dv
  y = concat over e, c of acc  Wo                                       E * dv to D, no bias

  Virtual slots reuse rows through the projections of different groups. The paper has such layers
  beside the feed-forward layers, each reading at one block and adding after a later one:
  `transformer.Skip`. Written by gradient only: nothing is stored at run time.

  The published run norms queries and keys by RMSNorm with scales that start at dk^-0.33, as here.
  The penalty on the core's further singular values is in the paper, but not in the released code:
  off by default. Heads share one pair of queries, as the two heads of the released layer do. The
  table holds the slices of a row one after the other, `[N * C, dv / C]`, and keys are laid out
  with their width last.

  Args:
    dim: model width D.
    keys: n; N = n * n rows of the table.
    heads, top_k: H heads read k slots each.
    query_dim: dk, the width of each half of a query.
    value_dim: dv, a multiple of channels; None: half of dim.
    rank, channels: r and C of the score.
    expansion: E, a square number: there are n' = n sqrt(E) keys of each side.
    penalty: weight of the "singular_loss" that is emitted; 0.001 in the paper.
    implementation: of the weighted sums; see `embedding_bag`.

  State: `Stateless`. Emits "ids" (rows of N) and "weights" (the sum of |g_c| over c) for
  `parametric.usage`. Its fixed arrays are the permutation and the core's singular vectors
  (`refresh_singular_vectors`).
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    keys: int = 256,
    heads: int = 2,
    top_k: int = 32,
    query_dim: int = 192,
    value_dim: int | None = None,
    rank: int = 2,
    channels: int = 2,
    expansion: int = 4,
    penalty: float = 0.0,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    value_dim = dim // 2 if value_dim is None else value_dim
    checks.positive(dim=dim, keys=keys, value_dim=value_dim, expansion=expansion)
    checks.divides("channels", channels, "value_dim", value_dim)
    self.dim, self.rows, self.channels, self.expansion = dim, keys * keys, channels, expansion
    self.implementation, self.table_sharding = implementation, None
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.search = TuckerKeys(
      dim,
      keys=keys_for(keys, expansion),
      heads=heads,
      top_k=top_k,
      query_dim=query_dim,
      rank=rank,
      channels=channels,
      penalty=penalty,
      **make,
    )
    self.permutation = slot_order(expansion * self.rows, rngs)
    init, shape = nnx.initializers.normal(0.02), (self.rows * channels, value_dim // channels)
    axes = ("rows", "value")
    self.table = param(rngs, init, shape, axes=axes, dtype=param_dtype, kind=Table)
    wide = expansion * value_dim
    init = nnx.initializers.normal(wide**-0.5)
    self.out = Linear(wide, dim, init=init, axes=("mlp", "embed"), **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    slots, scores = self.search(x)
    place = self.permutation.at[slots].get(mode="promise_in_bounds")
    ids, group = place % self.rows, place // self.rows
    ids = emit_reads(ids, scores, valid, self.rows)
    y = self._read(ids, group, scores)
    return self.out(y.astype(x.dtype)), state

  def _read(self, ids, group, scores) -> jax.Array:
    """Concatenated sums `[B, T, E * dv]` float32: one bag for each token, group and channel.

    Args:
      ids, group: `[B, T, b]`.   scores: `[B, T, C, b]`.
    """
    batch, length, bag = ids.shape
    bags = self.expansion * self.channels
    groups, channels = jnp.arange(self.expansion), jnp.arange(self.channels)
    mine = group[:, :, None] == groups.reshape(1, 1, -1, 1)
    ids = ids[:, :, None] * self.channels + channels.reshape(1, 1, -1, 1)
    # The reads of other groups are padding: they cost a kernel nothing.
    none = self.rows * self.channels
    ids = jnp.where(mine[:, :, :, None], ids[:, :, None], none)
    weights = jnp.broadcast_to(scores[:, :, None], ids.shape)
    y = lookup.bag(
      self.table[...],
      ids.reshape(batch, length * bags, bag),
      weights.reshape(batch, length * bags, bag),
      label="table",
      sharding=self.table_sharding,
      implementation=self.implementation,
    )
    return y.reshape(batch, length, -1)
