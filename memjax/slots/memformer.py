"""Memformer: slots that an encoder reads in every layer and rewrites once a segment.

Wu, Lan, Qian, Gu, Geramifard, Yu, "Memformer: A Memory-Augmented Transformer for Sequence
Modeling", 2020, arXiv 2010.06891. The model's own code is not public.

B batch, g tokens of a segment, D width, N slots, H heads, K = D / H.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Memory, Replay, bounded, channel, checks, param, segmented
from memjax.core.layers import LayerNorm, Linear
from memjax.core.usage import measure
from memjax.slots.gates import gru
from memjax.slots.segment_model import ENCODED, MEMORY, Border, Encoded, SegmentModel, reading
from memjax.slots.slot_attention import LARGEST, attend_itself, split_heads

WRITES = ("slots", "gru")


class SlotWrite(nnx.Module):
  """Each slot looks at itself and the tokens x `[B, g, D]`, and is then drawn towards a vector v_i.

      a_i = softmax([m_i Wq (m_i Wk)^T, m_i Wq (x Wk)^T] / (sqrt(K) tau))    a head,  [1 + g]
      m_i' = a_i [m_i; x Wv]            the raw m_i: attention 1 on itself keeps it as it is
      m_i <- (m_i' + v_i) / |m_i' + v_i|                                     forgetting

  The first slots are v_i / |v_i|, what slots decay to. No projection follows the heads. With
  several of them "keeps" holds for a head's slice of the slot.
  """

  def __init__(
    self, dim: int, *, slots: int, heads: int, temperature: float, init_std: float,
    param_dtype=jnp.float32, rngs: nnx.Rngs,
  ):  # fmt: skip
    self.heads, self.temperature = heads, temperature
    make = {"axes": ("embed", "heads"), "param_dtype": param_dtype, "rngs": rngs}
    self.query, self.key, self.value = (Linear(dim, dim, **make) for _ in range(3))
    init = nnx.initializers.normal(init_std)
    self.towards = param(rngs, init, (slots, dim), axes=("slots", "embed"), dtype=param_dtype)

  def first(self) -> jax.Array:
    return _unit(self.towards[...].astype(jnp.float32))

  def __call__(self, memory, x, valid=None) -> jax.Array:
    m, x = memory.astype(jnp.float32), bounded(x.astype(jnp.float32), LARGEST)
    heads = lambda a: split_heads(a, self.heads)  # noqa: E731
    own, tokens = (self.key(m), m), (self.key(x), self.value(x))
    own, tokens = tuple(map(heads, own)), tuple(map(heads, tokens))
    m, kept = attend_itself(heads(self.query(m)), own, tokens, valid, temperature=self.temperature)
    if channel.measuring():
      measure("kept", kept, None if valid is None else jnp.any(valid, axis=1), tokens=False)
    m = bounded(m.reshape(memory.shape), LARGEST)
    return _unit(m + self.towards[...].astype(jnp.float32)[None])


class GRUWrite(nnx.Module):
  """The write of the public re-implementation (github.com/lucidrains/memformer), to compare with.

      u_i = MHA(m_i; m_i and x), with a projection after the heads and biases, tau = 1
      m_i <- h_i + FFN(LN(h_i)),  h_i = GRU(u_i, m_i)

  The first slots are a learned matrix that starts normal with deviation 1; nothing is normalised,
  and no vector draws the slots.
  """

  def __init__(
    self, dim: int, *, slots: int, heads: int, param_dtype=jnp.float32, rngs: nnx.Rngs
  ):  # fmt: skip
    self.heads = heads
    make = {"bias": True, "param_dtype": param_dtype, "rngs": rngs}
    self.query, self.key, self.value, self.out = (
      Linear(dim, dim, axes=("embed", "heads"), **make) for _ in range(4)
    )
    self.update = Linear(dim, 3 * dim, axes=("embed", "heads"), **make)  # r, z, n
    self.old = Linear(dim, 3 * dim, axes=("embed", "heads"), **make)
    self.norm = LayerNorm(dim, param_dtype=param_dtype, rngs=rngs)
    self.up = Linear(dim, 4 * dim, axes=("embed", "mlp"), **make)
    self.down = Linear(4 * dim, dim, axes=("mlp", "embed"), **make)
    init = nnx.initializers.normal(1.0)
    self.start = param(rngs, init, (slots, dim), axes=("slots", "embed"), dtype=param_dtype)

  def first(self) -> jax.Array:
    return self.start[...]

  def __call__(self, memory, x, valid=None) -> jax.Array:
    m, x = (bounded(a.astype(jnp.float32), LARGEST) for a in (memory, x))
    heads = lambda a: split_heads(a, self.heads)  # noqa: E731
    own, tokens = ((heads(self.key(a)), heads(self.value(a))) for a in (m, x))
    update, kept = attend_itself(heads(self.query(m)), own, tokens, valid)
    if channel.measuring():
      measure("kept", kept, None if valid is None else jnp.any(valid, axis=1), tokens=False)
    h = gru(self.update(self.out(update.reshape(m.shape))), self.old(m), m)
    inner = bounded(self.up(self.norm(h)), 1e12)  # its gelu's cube stays finite
    return h + self.down(jax.nn.gelu(inner, approximate=False))


class Memformer(SegmentModel):
  """An encoder that reads N slots in every layer, rewrites them after its last, and a decoder.

  For segment t of g tokens, x_t:

      E_t = encoder(x_t; M_{t-1})       [B, g, D], its `SlotRead` layers see M_{t-1}
      M_t = write(M_{t-1}, E_t)         [B, N, D], see `SlotWrite`
      y_t = decoder(x_t; E_{t-1})       causal, its `SlotRead(source="encoded")` layers see E_{t-1}

  The paper's layout: the decoder predicts segment t from what the encoder made of segment t - 1. A
  layer has attention, then the read, then the feed-forward, each with its norm and residual:

      encoder = partial(Stack, repeats=4, pattern=[
        partial(Attention, heads=4, span="span"), SlotRead, FeedForward])
      decoder = partial(Stack, repeats=8, pattern=[
        partial(Attention, heads=4), partial(SlotRead, source="encoded"), FeedForward])

  Without a decoder the encoder must be causal, and y_t = E_t: a language model with slots.

  Args:
    dim: model width D.
    encoder: factory of a body, called as `encoder(dim, rngs=rngs)`. Beside a decoder it sees whole
      segments only, in `context.tokens` nothing but a "span" that lets attention look both ways.
    decoder: factory of a causal body, or None. What runs token by token, this or the only body,
      must carry g tokens to continue open segments: `core.replace(model, capacity=g)`.
    segment: tokens g of a segment.
    slots: N; the paper has 64 for images, more for text.
    heads: heads of the write.
    temperature: tau of the write; below 1 it is sharper. The paper's value is not known to us.
    write: "slots", or "gru" as in the re-implementation (`GRUWrite`).
    init_std: deviation of the vectors v that slots decay to. The longer they are, the faster.
    remat: "full", memory replay back-propagation: T segments keep T memories and one segment's
      activations, and the gradient is that of the whole sequence. None keeps all; or a `Replay`.

  Differences from the paper: attention's positions are the bodies' own (the paper's are relative
  biases); slots enter reads and the write as they are, without a norm. Weights of segments' losses
  (the authors' trainer for MemBART doubles them from one segment to the next; its roll-outs may
  overlap) are the caller's.

  Measures (`core.usage`) `kept`, the weight of slots on themselves, besides what the bodies do;
  traced (`inspect`), it is `[B, T / g, N, H]`.

  State: `SegmentState`, `(N + g) D` numbers and the body's; with a decoder `(N + 2 g) D`.

  Raises:
    ValueError: a body is not causal or reads no slots; T is neither below g nor a multiple of it.
  """

  def __init__(
    self, dim: int, *, encoder: Callable[..., Memory], decoder: Callable[..., Memory] | None = None,
    segment: int, slots: int = 64, heads: int = 4, temperature: float = 0.25, write: str = "slots",
    init_std: float = 0.02, remat: str | Replay | None = "full", param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.divides("heads", heads, "dim", dim)
    checks.one_of("write", write, WRITES)
    if not temperature > 0:
      raise ValueError(f"temperature={temperature!r} must be > 0")
    encodings = 0 if decoder is None else segment
    self._set_up(dim, segment=segment, slots=slots, encodings=encodings, remat=remat)
    self.encoder = encoder(dim, rngs=rngs)
    self.decoder = None if decoder is None else decoder(dim, rngs=rngs)
    self._check_body("the encoder", self.encoder, source=MEMORY, causal=decoder is None)
    if self.decoder is not None:
      self._check_body("the decoder", self.decoder, source=ENCODED, causal=True)
    make = {"slots": slots, "heads": heads, "param_dtype": param_dtype, "rngs": rngs}
    if write == "gru":
      self.write = GRUWrite(dim, **make)
    else:
      self.write = SlotWrite(dim, temperature=temperature, init_std=init_std, **make)

  @property
  def body(self) -> Memory:
    return self.encoder if self.decoder is None else self.decoder

  def _first(self) -> jax.Array:
    return self.write.first()

  def _run(self, x, state, border: Border, *, valid, context):
    y, state = self.body(x, state, valid=valid, context=reading(context, border))
    return y, (y if self.decoder is None else x), state

  def _write(self, kept, valid, border: Border, context) -> Border:
    if self.decoder is None:
      return dataclasses.replace(border, memory=self.write(border.memory, kept, valid))
    context = reading(context, border).with_tokens(
      {segmented.SPAN: jnp.ones(kept.shape[:2], jnp.int32)}
    )
    start = self.encoder.init_state(kept.shape[0])
    encoded, _ = self.encoder(kept, start, valid=valid, context=context)
    memory = self.write(border.memory, encoded, valid)
    seen = jnp.ones(kept.shape[:2], jnp.bool_) if valid is None else valid
    return Border(memory, Encoded(encoded.astype(jnp.float32), seen), border.filled)


def _unit(a: jax.Array) -> jax.Array:
  """Vectors over the last axis by their length; a zero stays one, with a gradient."""
  return a * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(a), axis=-1, keepdims=True), 1e-24))
