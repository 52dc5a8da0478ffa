"""Attention between tokens and slots: tokens read slots; a slot sees itself and tokens, never
another slot (Memformer, arXiv 2010.06891; MemBART, arXiv 2209.07634).

B batch, T tokens, S slots or other things read, N slots, D model width, H heads, K = D / H.
Weights are float32.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Stateless, bounded, checks, clean
from memjax.core.layers import LayerNorm, Linear, default_init
from memjax.core.usage import measure_slots
from memjax.slots.addressing import keep_largest

LARGEST = 1e15  # of a query's, key's or value's entries: products and their sums stay finite
_UNSEEN = -2e38  # a score whose weight is zero


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """`[B, T, D]` as `[B, T, H, K]`, float32 and bounded."""
  return bounded(x.astype(jnp.float32), LARGEST).reshape(*x.shape[:2], heads, -1)


def attend(
  q, k, v, mask=None, *, scale: float | None = None, top_k: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """`softmax(scale q k^T) v`; a query that sees nothing gets zeros.

  Args:
    q: `[B, T, H, K]`.   k, v: `[B, S, H, K]`.   mask: `[B or 1, T or 1, S] bool`; None: all.
    scale: None: 1 / sqrt(K).
    top_k: only so many largest weights count, a query and head; they keep their values.

  Returns:
    `[B, T, H, K]`, and the weights `[B, T, H, S]`.
  """
  # Scaled before: a product fused with the softmax's difference rounds otherwise than its maximum.
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  # Heads before places, or a CPU multiplies rows that lie apart, at a third of the speed.
  q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * scale, k, v))
  scores = jnp.einsum("bhtk,bhsk->bhts", q, k)
  if mask is None:
    weights = jax.nn.softmax(scores, axis=-1)
  else:
    mask = mask[:, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, _UNSEEN), axis=-1)
    weights = jnp.where(mask, weights, 0)
  if top_k is not None and top_k < weights.shape[-1]:
    weights = keep_largest(weights, top_k)
  y = jnp.einsum("bhts,bhsk->bhtk", weights, v)
  return jnp.swapaxes(y, 1, 2), jnp.swapaxes(weights, 1, 2)


def attend_itself(q, own, tokens, valid=None, *, temperature=1.0) -> tuple[jax.Array, jax.Array]:
  """Each slot's attention to itself and the tokens.

      a_i = softmax([q_i k_i, q_i K^T] / (sqrt(K) temperature)),  out_i = a_i [v_i; V]

  Args:
    q: `[B, N, H, K]`.   own: keys and values of the slots, like q.   tokens: those of the tokens,
      `[B, T, H, K]`.   valid: `[B, T] bool`, tokens that are seen.

  Returns:
    `[B, N, H, K]`, and the weight of a slot on itself `[B, N, H]`.
  """
  (own_key, own_value), (keys, values) = own, tokens
  q = q / (q.shape[-1] ** 0.5 * temperature)
  itself = jnp.sum(q * own_key, axis=-1, keepdims=True)
  q, itself, own_value, keys, values = (
    jnp.swapaxes(a, 1, 2) for a in (q, itself, own_value, keys, values)
  )
  scores = jnp.einsum("bhnk,bhtk->bhnt", q, keys)
  if valid is not None:
    scores = jnp.where(valid[:, None, None, :], scores, _UNSEEN)
  weights = jax.nn.softmax(jnp.concatenate([itself, scores], axis=-1), axis=-1)
  out = weights[..., :1] * own_value + jnp.einsum("bhnt,bhtk->bhnk", weights[..., 1:], values)
  return jnp.swapaxes(out, 1, 2), jnp.swapaxes(weights[..., 0], 1, 2)


class PostNorm(nnx.Module):
  """What a transformer layer with norms after its residuals computes beside the attention; all
  projections have biases.

      q, k, v = x Wq, x Wk, x Wv;   x = LN(x + o Wo);   x = LN(x + act(x W1) W2)

  Args:
    dim, heads, hidden: D, H and the inner width.   activation: "gelu" (exact) or "relu".
  """

  def __init__(
    self, dim: int, *, heads: int, hidden: int, activation: str = "gelu", param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.one_of("activation", activation, ("gelu", "relu"))
    self.heads, self.activation = heads, activation
    make = {"bias": True, "param_dtype": param_dtype, "rngs": rngs}
    self.query, self.key, self.value = (
      Linear(dim, dim, axes=("embed", "heads"), **make) for _ in range(3)
    )
    self.out = Linear(dim, dim, axes=("heads", "embed"), **make)
    self.up = Linear(dim, hidden, axes=("embed", "mlp"), **make)
    self.down = Linear(hidden, dim, axes=("mlp", "embed"), **make)
    self.attended, self.fed = (LayerNorm(dim, param_dtype=param_dtype, rngs=rngs) for _ in range(2))

  def split(self, x) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values `[B, T, H, K]` float32 of `x [B, T, D]`."""
    q, k, v = (split_heads(layer(x), self.heads) for layer in (self.query, self.key, self.value))
    return q, k, v

  def join(self, x, heads, drop) -> jax.Array:
    """The layer's output `[B, T, D]` from its input x and what its heads saw, `[B, T, H, K]`;
    `drop(x, i)` is the i-th dropout, of two."""
    x = self.attended(x + drop(self.out(heads.reshape(x.shape).astype(x.dtype)), 0))
    inner = self.up(x)
    inner = jax.nn.relu(inner) if self.activation == "relu" else jax.nn.gelu(inner, False)
    return self.fed(x + drop(self.down(inner), 1))

  def across(self, x, others, seen, drop) -> tuple[jax.Array, jax.Array]:
    """The whole layer, of `x [B, T, D]` that look at `others [B, S, D]` where `seen [B, S]`.

    Returns:
      `[B, T, D]`, and the weights `[B, T, H, S]`.
    """
    q, k, v = self.query(x), self.key(others), self.value(others)
    q, k, v = (split_heads(a, self.heads) for a in (q, k, v))
    y, weights = attend(q, k, v, seen[:, None])
    return self.join(x, y, drop), weights


class SlotRead(Memory):
  """Tokens read what a wrapper holds: `y = softmax((x Wq)(M Wk)^T / sqrt(K)) (M Wv) Wo`, by heads.

  A layer of the bodies that `Memformer` and `MemBART` wrap. Stateless: M is the entry `source` of
  `context.shared`, `[B, S, D]`; `<source>_seen`, `[B, S] bool`, if given, says which of its rows
  are there. A token that sees none reads zeros. M has no positions.

  Args:
    dim: model width D.   heads: H.   bias: biases in all the projections.   init: of these.
    source: "memory", the slots; or "encoded", what an encoder made of the last segment.

  Measures (`core.usage`) `read_peak` and `slots_read`. Traces (`inspect`) `read [B, T, H, S]`.
  """

  cuts_time = True

  def __init__(
    self, dim: int, *, heads: int = 4, source: str = "memory", bias: bool = False,
    init=default_init, param_dtype=jnp.float32, rngs,
  ):  # fmt: skip
    checks.positive(dim=dim)
    checks.divides("heads", heads, "dim", dim)
    self.dim, self.heads, self.source = dim, heads, source
    make = {"bias": bias, "init": init, "param_dtype": param_dtype, "rngs": rngs}
    self.query = Linear(dim, dim, axes=("embed", "heads"), **make)
    self.key = Linear(dim, dim, axes=("embed", "heads"), **make)
    self.value = Linear(dim, dim, axes=("embed", "heads"), **make)
    self.out = Linear(dim, dim, axes=("heads", "embed"), **make)

  def init_state(self, batch: int) -> Stateless:
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    checks.call(self, x, state, reset, valid, dim=self.dim)
    memory = checks.context_entry(self, context, "shared", self.source)
    if memory.ndim != 3 or memory.shape[::2] != (x.shape[0], self.dim):
      raise ValueError(
        f"context.shared[{self.source!r}] has shape {list(memory.shape)}; SlotRead needs "
        f"[B, S, D] = [{x.shape[0]}, S, {self.dim}]"
      )
    seen = None if context is None else context.shared.get(f"{self.source}_seen")
    return self.look(clean(x, valid), memory, seen, valid)[0], state

  def look(self, x, memory, seen=None, valid=None) -> tuple[jax.Array, jax.Array]:
    """`y [B, T, D]` and the weights `[B, T, H, S]` float32 of x `[B, T, D]` on `memory [B, S, D]`,
    of which the rows `seen [B, S] bool` are there; `valid [B, T]` is for what is measured."""
    memory = bounded(memory.astype(x.dtype), LARGEST)
    q, k, v = self.query(x), self.key(memory), self.value(memory)
    q, k, v = (split_heads(a, self.heads) for a in (q, k, v))
    y, weights = attend(q, k, v, None if seen is None else seen[:, None, :])
    measure_slots(read=weights, valid=valid)
    return self.out(y.reshape(x.shape).astype(x.dtype)), weights
