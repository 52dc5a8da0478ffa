"""Memory+: product keys gated by their input, with a pool of values for several layers.

Berges et al., "Memory Layers at Scale", ICML 2025, arXiv 2412.09764.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, checks, clean
from memjax.core.layers import Linear
from memjax.parametric.product_keys import ProductKeys, Values, uniform


class MemoryPlus(Memory):
  """A product-key memory gated by its input; several layers may read one pool of values.

  y = sum over heads and slots of w V[slot]      as in `ProductKeyMemory`, with q = x Wq + bq
  out = (y * silu(x W1 + b1)) W2 + b2

  In place of a feed-forward layer; the paper has three such layers, spread over the depth. Written
  by gradient only: nothing is stored at run time.

  Args:
    dim: model width D.
    keys: n, keys of each half; N = n * n slots.
    heads, top_k: H heads read k slots each, k <= n.
    query_dim: dk, the width of a query, both halves together; None: half of dim, as in the paper.
    value_dim: dv; None: dim.
    values: None: a table of the layer's own; a name: the pool `context.shared[name]`, `[N, dv]`,
      as made by `value_pool`.
    qk_norm: RMSNorm with learned scales over each half of queries and keys before scoring; the
      paper's "when needed", for large N. "query": queries only.
    temperature: scores are divided by it before the softmax.
    implementation: of the search and of the weighted sum: "reference", "chunk" or None.

  State: `Stateless`. Emits "ids" and "weights" for `parametric.usage`.
  """

  cuts_time = True

  def __init__(
    self,
    dim: int,
    *,
    keys: int = 1024,
    heads: int = 4,
    top_k: int = 32,
    query_dim: int | None = None,
    value_dim: int | None = None,
    values: str | None = None,
    qk_norm: bool | str = False,
    temperature: float = 1.0,
    implementation: str | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(dim=dim)
    checks.one_of("qk_norm", qk_norm, (False, True, "query"))
    query_dim = dim // 2 if query_dim is None else query_dim
    value_dim = dim if value_dim is None else value_dim
    checks.positive(query_dim=query_dim, value_dim=value_dim)
    self.dim = dim
    make = {"param_dtype": param_dtype, "rngs": rngs}
    self.search = ProductKeys(
      dim,
      keys=keys,
      heads=heads,
      top_k=top_k,
      query_dim=query_dim,
      norm="rms" if qk_norm else None,
      norm_keys=qk_norm is True,
      temperature=temperature,
      key_bound=query_dim**-0.5,
      query_init=nnx.initializers.xavier_uniform(),
      implementation=implementation,
      **make,
    )
    self.values = Values(keys * keys, value_dim, name=values, implementation=implementation, **make)
    make |= {"init": nnx.initializers.normal(dim**-0.5), "bias": True}
    into, out = uniform(dim**-0.5), uniform(value_dim**-0.5)
    self.gate = Linear(dim, value_dim, bias_init=into, axes=("embed", "mlp"), **make)
    self.out = Linear(value_dim, dim, bias_init=out, axes=("mlp", "embed"), **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    x = clean(x, valid)
    ids, weights = self.search(x, valid, None)
    y = self.values(ids, weights, valid, context).astype(x.dtype)
    return self.out(y * jax.nn.silu(self.gate(x))), state
