"""Product-key memory: a large table of values whose keys are pairs of halves.

Lample et al., "Large Memory Layers with Product Keys", NeurIPS 2019, arXiv 1907.05242.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, checks, clean
from memjax.core.layers import Linear, dropout
from memjax.parametric.product_keys import ProductKeys, Values, uniform


class ProductKeyMemory(Memory):
  """A table of N = keys * keys values read by exact search over factored keys.

  q = norm(x Wq + bq)                            split per head, and each head's into q_1, q_2
  per head: the k slots (i, j) of the largest scores <q_1, K_1[i]> + <q_2, K_2[j]>
  w = softmax over those k scores                no scaling
  y = sum over heads and slots of w V[slot]

  In place of a feed-forward layer. Written by gradient only: nothing is stored at run time. Heads
  have their own keys and share the values.

  Args:
    dim: model width D.
    keys: n, keys of each half; N = n * n slots.
    heads, top_k: H heads read k slots each, k <= n.
    query_dim: dk, the width of a query, both halves together.
    query_norm: "rms" or "layer" over each half of a query; "batch" over all tokens, as in the
      paper's best results (see `BatchNorm`: `use_batch` and running statistics); or None.
    value_dim: dv; None: dim. Another width is brought back to dim by a matrix without bias.
    values: None: a table of the layer's own; a name: the table `context.shared[name]`, `[N, dv]`.
    input_dropout, query_dropout, value_dropout: rates; they need `context.key`.
    implementation: of the search and of the weighted sum: "reference", "chunk" or None.

  State: `Stateless`. Emits "ids" and "weights" (`parametric.usage`), "batch_stats" (`BatchNorm`).
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    keys: int = 512,
    heads: int = 4,
    top_k: int = 32,
    query_dim: int = 256,
    query_norm: str | None = "rms",
    value_dim: int | None = None,
    values: str | None = None,
    input_dropout: float = 0.0,
    query_dropout: float = 0.0,
    value_dropout: float = 0.0,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    value_dim = dim if value_dim is None else value_dim
    checks.positive(dim=dim, query_dim=query_dim, value_dim=value_dim)
    checks.fraction(input_dropout=input_dropout, value_dropout=value_dropout)
    self.dim, self.input_dropout, self.value_dropout = dim, input_dropout, value_dropout
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.search = ProductKeys(
      dim,
      keys=keys,
      heads=heads,
      top_k=top_k,
      query_dim=query_dim,
      norm=query_norm,
      key_bound=(query_dim / 2) ** -0.5,
      query_init=uniform(dim**-0.5),
      dropout=query_dropout,
      implementation=implementation,
      **make,
    )
    self.values = Values(keys * keys, value_dim, name=values, implementation=implementation, **make)
    init, axes = nnx.initializers.normal(dim**-0.5), ("mlp", "embed")
    same = value_dim == dim
    self.out = None if same else Linear(value_dim, dim, init=init, axes=axes, **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    key = None if context is None else context.key
    into, query, out = (None,) * 3 if key is None else jax.random.split(key, 3)
    x = dropout(clean(x, valid), self.input_dropout, into)
    ids, weights = self.search(x, valid, query)
    y = self.values(ids, weights, valid, context).astype(x.dtype)
    y = dropout(y, self.value_dropout, out)
    return (y if self.out is None else self.out(y)), state
