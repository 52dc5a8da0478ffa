"""PEER: experts of one hidden unit, found by product keys.

Xu Owen He, "Mixture of A Million Experts", 2024, arXiv 2407.04153.
"""

import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, bounded, checks, clean, lookup
from memjax.parametric.mlp_memory import ACTIVATIONS
from memjax.parametric.product_keys import ProductKeys, value_pool
from memjax.parametric.usage import emit_reads

EXPERTS = {**ACTIVATIONS, "identity": lambda h: h}
_LARGEST = 1e12  # of what enters an activation: its cube stays finite


class PEER(Memory):
  """N = keys * keys experts of one neuron each, of which every token retrieves H * k.

  q = norm(x Wq + bq); per head the k best slots of its product keys, as in `ProductKeyMemory`
  g = softmax over the k scores of a head, or the sigmoid of each
  y = sum over heads and slots of g act(<u[slot], x>) v[slot]

  The H * k neurons form a feed-forward layer of a token's own, in place of the dense one. The
  activation comes before the router's weight. Written by gradient only: nothing is stored at run
  time. Heads have their own keys, as in the public codes (the paper shares them), and share the
  experts. Queries have a bias, and experts start Normal(0, 1/sqrt(D)), as in the variant that
  Memory+'s authors compare with; the paper says neither.

  Args:
    dim: model width D.
    keys: n, keys of each half; N = n * n experts.
    heads, top_k: H heads retrieve k experts each, k <= n.
    query_dim: dk, the width of a query, both halves together.
    query_norm: "batch" over all tokens, as in the paper (see `BatchNorm`: `use_batch` and running
      statistics); "rms" or "layer" over each half of a query; or None.
    gate: "softmax" or "sigmoid".
    activation: "gelu" (tanh form), "relu", "silu" or "identity".
    implementation: of the search and of both lookups: "reference", "chunk" or None.

  State: `Stateless`. Two tables, `down` and `up` (u and v), `[N, D]` each. Emits "ids" and
  "weights" (g, for `parametric.usage`), "batch_stats" (`BatchNorm`).
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    keys: int = 1024,
    heads: int = 8,
    top_k: int = 16,
    query_dim: int = 256,
    query_norm: str | None = "batch",
    gate: str = "softmax",
    activation: str = "gelu",
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(dim=dim, query_dim=query_dim)
    checks.one_of("activation", activation, EXPERTS)
    self.dim, self.activation, self.implementation = dim, activation, implementation
    self.table_sharding = None
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.search = ProductKeys(
      dim,
      keys=keys,
      heads=heads,
      top_k=top_k,
      query_dim=query_dim,
      norm=query_norm,
      gate=gate,
      key_bound=query_dim**-0.5,
      query_init=nnx.initializers.xavier_uniform(),
      implementation=implementation,
      **make,
    )
    self.down = value_pool(keys * keys, dim, **make)
    self.up = value_pool(keys * keys, dim, **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    ids, gates = self.search(x, valid, None)
    ids = emit_reads(ids, gates, valid, self.search.rows)
    options = {"sharding": self.table_sharding, "implementation": self.implementation}
    hidden = lookup.dots(self.down[...], ids, x, label="down", **options)
    weights = gates * EXPERTS[self.activation](bounded(hidden, _LARGEST))
    y = lookup.bag(self.up[...], ids, weights, label="up", **options)
    return y.astype(x.dtype), state
