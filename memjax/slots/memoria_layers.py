"""The parameters of Memoria (arXiv 2310.03052): what makes working memories, what reads engrams.

B batch, T tokens, D width, H heads, N working memories, R engrams reminded.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, bounded, channel, checks, clean, param, segmented
from memjax.core.layers import LayerNorm, Linear, dropout
from memjax.slots.slot_attention import LARGEST, SlotRead, attend, split_heads

WORKING, REMINDED = "working", "reminded"  # entries of `context.shared`; `<name>_seen` beside each


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Credit:
  """The attention that reminded engrams got in a layer, as a `MemoriaRead` emits it.

  Attributes:
    total: `[B, R]` float32, a sum over heads and tokens.   count: `[B]` float32, of how many.
  """

  total: jax.Array
  count: jax.Array


class Abstractor(nnx.Module):
  """Makes N working memories of vectors h `[B, S, D]`, of those that are seen, in float32:

      softmax(Q0 (h Wk + bk)^T) (h Wv + bv)  ->  (. Wf + bf) Wo + bo        Wf [D, 4 D], Wo [4 D, D]

  The scores are not divided by sqrt(D), and there is no activation in between.
  """

  def __init__(
    self, dim: int, *, slots: int, init_std: float = 0.02, param_dtype=jnp.float32, rngs: nnx.Rngs
  ):  # fmt: skip
    init = nnx.initializers.normal(init_std)
    make = {"bias": True, "init": init, "param_dtype": param_dtype, "rngs": rngs}
    self.query = param(rngs, init, (slots, dim), axes=("slots", "embed"), dtype=param_dtype)
    # One head is not cut. (Were it, jax 0.10.2 would mix up rows in the gradient of `value`.)
    self.key, self.value = (Linear(dim, dim, axes=("embed", "kv"), **make) for _ in range(2))
    self.up = Linear(dim, 4 * dim, axes=("embed", "mlp"), **make)
    self.down = Linear(4 * dim, dim, axes=("mlp", "embed"), **make)

  def __call__(self, h: jax.Array, seen: jax.Array) -> jax.Array:
    h = bounded(h.astype(jnp.float32), LARGEST)
    query = jnp.broadcast_to(
      self.query[...].astype(jnp.float32)[None], (h.shape[0], *self.query.shape)
    )
    q, k, v = (split_heads(a, 1) for a in (query, self.key(h), self.value(h)))
    found, _ = attend(q, k, v, seen[:, None, :], scale=1.0)
    return self.down(self.up(found[:, :, 0]))


class MemoriaRead(Memory):
  """Tokens read the working memories, then the reminded engrams, by one attention:

      h <- h + attention(norm_a(h); working),   h <- h + attention(norm_b(h); reminded)

  A layer of the bodies that `Memoria` wraps, after self-attention in the paper. Stateless; what it
  reads is in `context.shared`. Before the first memory it adds nothing, and where there are working
  memories and nothing is reminded, the bias of the attention's last projection.

  Args:
    dim: model width D.   heads: H.   init_std: deviation of the projections; 0.02 in the paper.
    dropout: rate on what each attention adds; needs `context.key`.

  Measures (`core.usage`) `read_peak` and `slots_read` of both.
  """

  residual = False
  cuts_time = True

  def __init__(
    self, dim: int, *, heads: int = 4, init_std: float = 0.02, dropout: float = 0.0,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(dim=dim)
    checks.fraction(dropout=dropout)
    self.dim, self.dropout = dim, dropout
    make = {"param_dtype": param_dtype, "rngs": rngs}
    init = nnx.initializers.normal(init_std)
    self.attention = SlotRead(dim, heads=heads, source=REMINDED, bias=True, init=init, **make)
    self.norm_working, self.norm_reminded = LayerNorm(dim, **make), LayerNorm(dim, **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    working, there = (self._entry(context, WORKING + end, x) for end in ("", "_seen"))
    reminded, seen = (self._entry(context, REMINDED + end, x) for end in ("", "_seen"))
    x = clean(x, valid)
    x, _ = self._add(0, x, self.norm_working, working, there, there, valid, context)
    x, weights = self._add(1, x, self.norm_reminded, reminded, seen, there, valid, context)
    if channel.collecting():
      weights = jax.lax.stop_gradient(weights)
      came = jnp.ones(x.shape[:2], jnp.bool_) if valid is None else valid
      total = jnp.sum(jnp.where(came[:, :, None, None], weights, 0), axis=(1, 2))
      count = jnp.sum(came, axis=1, dtype=jnp.float32) * weights.shape[2]
      channel.emit("credit", Credit(total, count))
    return x, state

  def _add(self, index, x, norm, memory, seen, there, valid, context):
    y, weights = self.attention.look(norm(x), memory, seen, valid)
    key = segmented.fold_key(context, index)
    y = dropout(y, self.dropout, None if key is None else key.key)
    return x + jnp.where(jnp.any(there, axis=1)[:, None, None], y, 0), weights

  def _entry(self, context, name, x):
    entry = checks.context_entry(self, context, "shared", name)
    last = () if name.endswith("_seen") else (self.dim,)
    if entry.ndim != 2 + len(last) or (entry.shape[0], *entry.shape[2:]) != (x.shape[0], *last):
      raise ValueError(
        f"context.shared[{name!r}] has shape {list(entry.shape)}; MemoriaRead needs "
        f"{[x.shape[0], 'S', *last]}"
      )
    return entry
