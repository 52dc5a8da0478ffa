"""MemBART: an encoder in which slots run beside the tokens, layer by layer, with weights of their
own.

Wu, Yu, "Stateful Memory-Augmented Transformers for Efficient Dialogue Modeling", 2022, arXiv
2209.07634. Compared with the authors' code (qywu/memformers, models/membart).

B batch, g tokens of a segment, D width, N slots, H heads, K = D / H.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Context, Memory, Replay, bounded, channel, checks, param
from memjax.core.layers import LayerNorm, Linear, dropout
from memjax.core.module import stack
from memjax.core.state import stack_key
from memjax.core.usage import measure
from memjax.slots.segment_model import ENCODED, Border, Encoded, SegmentModel, reading
from memjax.slots.slot_attention import LARGEST, PostNorm, attend, attend_itself

SLOTS, TOKENS = "slots", "tokens"  # the two streams of a layer, by the names of their weights


class TwoStreams(nnx.Module):
  """A layer: one softmax over slots m and tokens h, and two sets of weights.

      [om; oh] = softmax([qm; qh] [km; kh]^T / sqrt(K)) [vm; vh]

  A token sees all slots and all valid tokens; a slot sees itself and the valid tokens.
  """

  def __init__(self, dim: int, **sizes):
    self.slots, self.tokens = PostNorm(dim, **sizes), PostNorm(dim, **sizes)

  def __call__(self, m, h, valid, drop) -> tuple[jax.Array, jax.Array]:
    """`m [B, N, D], h [B, g, D]` -> the same; `drop(x, i)` is the i-th dropout."""
    count = m.shape[1]
    own, (q, k, v) = self.slots.split(m), self.tokens.split(h)
    om, kept = attend_itself(own[0], own[1:], (k, v), valid)
    seen = None
    if valid is not None:
      seen = jnp.pad(valid, ((0, 0), (count, 0)), constant_values=True)[:, None]
    k, v = jnp.concatenate([own[1], k], axis=1), jnp.concatenate([own[2], v], axis=1)
    oh, weights = attend(q, k, v, seen)
    if channel.measuring():
      measure("kept", kept, None if valid is None else jnp.any(valid, axis=1), tokens=False)
      measure("read_share", jnp.sum(weights[..., :count], axis=-1), valid)
    m = self.slots.join(m, om, lambda x, i: drop(x, i + 2))
    return m, self.tokens.join(h, oh, drop)


class MemBARTEncoder(nnx.Module):
  """The encoder: `M', h = encoder(x, M)`, see `MemBART`."""

  def __init__(
    self, dim: int, *, segment: int, slots: int, layers: int, heads: int, hidden: int | None,
    dropout: float, init_std: float, param_dtype, rngs: nnx.Rngs,
  ):  # fmt: skip
    hidden = 4 * dim if hidden is None else hidden
    checks.positive(layers=layers, hidden=hidden)
    checks.divides("heads", heads, "dim", dim)
    checks.fraction(dropout=dropout)
    self.dim, self.dropout = dim, dropout
    make = {"param_dtype": param_dtype, "rngs": rngs}
    drawn = functools.partial(param, rngs, dtype=param_dtype)
    normal, whole = nnx.initializers.normal, ("window", "memory")  # read by place, so never cut
    self.places = drawn(normal(0.02), (segment, dim), axes=whole)
    self.bias = drawn(normal(init_std), (slots, dim), axes=("slots", "embed"))
    self.embedded, self.started = LayerNorm(dim, **make), LayerNorm(dim, **make)
    sizes = {"heads": heads, "hidden": hidden, "param_dtype": param_dtype}
    layer = lambda rngs: TwoStreams(dim, **sizes, rngs=rngs)  # noqa: E731
    self.layers = nnx.Dict({stack_key(0, 1, layers): stack(layer, layers, rngs)})
    self.inner = Linear(dim, dim, bias=True, axes=("embed", "mlp"), **make)
    self.gate = Linear(dim, 1, bias=True, axes=("mlp", "memory"), **make)

  def __call__(self, x, memory, valid=None, context: Context | None = None):
    """
    Args:
      x: `[B, g, D]`.   memory: `[B, N, D]`.   valid: `[B, g] bool`.   context: its key drops.

    Returns:
      M': `[B, N, D]` float32.   h: `[B, g, D]`, dtype of x; unspecified where not valid.
    """
    drop = functools.partial(self._drop, context, 0)
    old = self.started(memory.astype(jnp.float32) + self.bias[...].astype(jnp.float32)[None])
    ((name, layers),) = self.layers.items()
    carry = old.astype(x.dtype), drop(self.embedded(bounded(x, LARGEST) + self._places(valid, x)))

    def layer(carry, inputs):
      layer, index = inputs
      with channel.scope(name, index):
        return layer(*carry, valid, functools.partial(self._drop, context, index + 1)), None

    count = jax.tree.leaves(layers)[0].shape[0]
    (m, h), _ = channel.scan(layer, carry, (layers, jnp.arange(count)), axis="layers")
    m = m.astype(jnp.float32)
    inner = jax.nn.gelu(self.inner(drop(m, 1)), approximate=False)
    alpha = jax.nn.sigmoid(self.gate(drop(inner, 2)))
    measure("gate", alpha[..., 0], None if valid is None else jnp.any(valid, axis=1), tokens=False)
    return alpha * m + (1 - alpha) * old, h

  def _places(self, valid, x):
    table = self.places[...].astype(x.dtype)
    if valid is None:
      return table[None]
    return table[jnp.maximum(jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1, 0)]

  def _drop(self, context, depth, x, index=0):
    if context is None or context.key is None:
      return x
    return dropout(x, self.dropout, context.fold(depth).fold(index).key)


class MemBART(SegmentModel):
  """An encoder in which N slots M run beside the tokens, and a decoder that reads both.

  For segment t of g tokens, x_t, with `LN`s, `bias [N, D]` and places `p [g, D]` learned:

      m_0 = LN(M_{t-1} + bias),   h_0 = LN(x_t + p)            M_0 = 0
      m_l, h_l = layer(m_{l-1}, h_{l-1})   for l = 1..L        `TwoStreams`, a post-norm layer
      alpha = sigmoid(gelu(m_L W1) W2)                         a number a slot
      M_t = alpha m_L + (1 - alpha) m_0,   H_t = h_L
      y_t = decoder(x_t; [M_{t-1}, H_{t-1}])                   causal

  The decoder predicts segment t from what the encoder made of segment t - 1, so that a stream of
  turns trains in one call, and generating is the same call with one token. In the first segment it
  reads nothing. It is any causal body with `SlotRead(source="encoded")` layers:

      decoder = partial(Stack, repeats=6, norm=LayerNorm, pattern=[
        partial(Attention, heads=12, bias=True),
        partial(SlotRead, heads=12, source="encoded", bias=True), partial(FeedForward, bias=True)])

  The bias is added, and the sum normalised, at every segment: under alpha = 0 a slot does not stay
  but turns back to LN(bias), where it started, in about 1 / init_std segments. A segment without a
  valid token leaves it as it is.

  Args:
    dim: model width D.
    decoder: factory of a causal body, called as `decoder(dim, rngs=rngs)`. To continue open
      segments it must carry g tokens: `core.replace(model, capacity=g)`.
    segment: tokens g of a segment; the paper's contexts have 128 to 512.
    slots: N; the published models have 64 (base) and 128 (large).
    layers, heads, hidden: of the encoder; hidden 4 * dim when None.
    dropout: rate where BART has it but on weights and inside the feed-forward, and before the
      gate's two layers; needs `context.key`.
    init_std: deviation of `bias`; 0.01 (base) and 0.001 (large).
    remat: "full", memory replay back-propagation: see `Memformer`. None keeps all; or a `Replay`.

  Differences from the code: places count a row's valid tokens; the decoder is the caller's, where
  BART's is post-norm with learned positions; weights start as this library's layers do, until those
  of a pre-trained encoder are put in their place (`slots_as_tokens`). Its trainer stops gradients
  at the start of a roll-out of 5 to 7 segments (`core.detach`) and doubles the losses' weights from
  one segment to the next: both are the caller's.

  Measures (`core.usage`) `gate`, the alphas, and by layer `kept`, the weight of slots on
  themselves, and `read_share`, the weight of tokens on slots; besides what the decoder does.
  Traced (`inspect`), they are `[B, T / g, N]`, `[B, T / g, N, H]` and `[B, T, H]`.

  State: `SegmentState`, `(N + 2 g) D` numbers and the decoder's.

  Raises:
    ValueError: the decoder is not causal or reads no encodings; T is neither below g nor a
      multiple of it.
  """

  def __init__(
    self, dim: int, *, decoder: Callable[..., Memory], segment: int, slots: int = 64,
    layers: int = 6, heads: int = 12, hidden: int | None = None, dropout: float = 0.0,
    init_std: float = 0.01, remat: str | Replay | None = "full", param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    self._set_up(dim, segment=segment, slots=slots, encodings=segment, remat=remat)
    self.encoder = MemBARTEncoder(
      dim, segment=segment, slots=slots, layers=layers, heads=heads, hidden=hidden,
      dropout=dropout, init_std=init_std, param_dtype=param_dtype, rngs=rngs,
    )  # fmt: skip
    self.decoder = decoder(dim, rngs=rngs)
    self._check_body("the decoder", self.decoder, source=ENCODED, causal=True)

  @property
  def body(self) -> Memory:
    return self.decoder

  def _first(self) -> jax.Array:
    return jnp.zeros((self.slots, self.dim), jnp.float32)

  def _run(self, x, state, border: Border, *, valid, context):
    memory, encoded = border.memory, border.encoded
    written = jnp.any(encoded.seen, axis=1, keepdims=True)  # not before the first segment's end
    both = Encoded(
      jnp.concatenate([memory, encoded.values], axis=1),
      jnp.concatenate([jnp.broadcast_to(written, memory.shape[:2]), encoded.seen], axis=1),
    )
    context = reading(context, dataclasses.replace(border, encoded=both))
    y, state = self.decoder(x, state, valid=valid, context=context)
    return y, x, state

  def _write(self, kept, valid, border: Border, context) -> Border:
    memory, encoded = self.encoder(kept, border.memory, valid, context)
    seen = jnp.ones(kept.shape[:2], jnp.bool_) if valid is None else valid
    return Border(memory, Encoded(encoded.astype(jnp.float32), seen), border.filled)


def slots_as_tokens(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The parameters (`core.split`, `core.flatten`) with the slots' stream of every layer as its
  tokens' stream: how slots start beside a pre-trained encoder."""
  twins = {name: name.replace(f"/{SLOTS}/", f"/{TOKENS}/") for name in params}
  return {name: params.get(twin, params[name]) for name, twin in twins.items()}
