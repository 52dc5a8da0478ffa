"""A language model: the one memory over ids."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import Context, Memory, checks, param, sharded
from memjax.core.sequence_sharding import constrain


class LanguageModel(Memory):
  """`[B, T] int32 -> logits [B, T, vocab] float32`: `embed`, `body` (any memory on `[B, T, D]`),
  `logits`.

  Args:
    vocab: number of ids.
    dim: model width D.
    body: factory of the body, called as `body(dim, rngs=rngs)`: a `Stack`, or a wrapper such as an
      RMT around one.
    tied: logits use the transposed embedding table.
    dtype: compute dtype of the activations (parameters keep `param_dtype`).
    shared: `{name: factory}` of arrays that several layers read as `context.shared[name]`; each is
      called as
      `factory(rngs=rngs)` and returns a variable (`parametric.value_pool`).

  State: the body's. An id outside 0..vocab-1 gives NaN logits for its row from there on, never
    another id's embedding.
  """

  cuts_time = True

  def __init__(
    self,
    vocab: int,
    dim: int,
    *,
    body: Callable[..., Memory],
    tied: bool = False,
    dtype=jnp.float32,
    shared: Mapping[str, Callable] | None = None,
    param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):
    checks.positive(vocab=vocab, dim=dim)
    self.vocab, self.dim, self.dtype = vocab, dim, jnp.dtype(dtype)
    init = nnx.initializers.normal(dim**-0.5)
    self.embedding = param(rngs, init, (vocab, dim), axes=("vocab", "embed"), dtype=param_dtype)
    self.head = (
      None if tied else param(rngs, init, (dim, vocab), axes=("embed", "vocab"), dtype=param_dtype)
    )
    self.body = body(dim, rngs=rngs)
    self.shared = nnx.Dict({name: factory(rngs=rngs) for name, factory in (shared or {}).items()})
    # How tokens and embeddings lie on a mesh; see `core.sharding`.
    self.sequence_sharding = self.embedding_sharding = None
    self.granularity, self.causal = self.body.granularity, self.body.causal

  def init_state(self, batch: int):
    return self.body.init_state(batch)

  def embed(self, ids: jax.Array) -> jax.Array:
    """Embeddings `[B, T, D]` of `ids [B, T]`, in the compute dtype."""
    if self.embedding_sharding is not None:
      x = sharded.take(self.embedding_sharding, self.embedding[...], ids)
    else:
      ids = jnp.where(ids < 0, self.vocab, ids)  # a negative index would count from the end
      x = jnp.take(self.embedding[...], ids, axis=0, mode="fill", fill_value=jnp.nan)
    return constrain(x.astype(self.dtype), self.sequence_sharding)

  def logits(self, h: jax.Array) -> jax.Array:
    """Logits `[B, T, vocab]` float32 of the body's output `h [B, T, D]`."""
    kernel = self.embedding[...].T if self.head is None else self.head[...]
    return jnp.matmul(h, kernel.astype(h.dtype), preferred_element_type=jnp.float32)

  def context(self, context: Context | None) -> Context | None:
    """The context with the model's shared arrays added."""
    if not self.shared:
      return context
    context = Context() if context is None else context
    shared = {**context.shared, **{name: value[...] for name, value in self.shared.items()}}
    return dataclasses.replace(context, shared=shared)

  def features(self, x, state, *, reset=None, valid=None, context=None):
    """As the call, without the last step: what the body makes of the ids, `[B, T, D]`, of which
    `logits` makes logits."""
    self._check(x, state, reset, valid)
    if valid is not None:
      x = jnp.where(valid, x, 0)
    return self.body(self.embed(x), state, reset=reset, valid=valid, context=self.context(context))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    h, state = self.features(x, state, reset=reset, valid=valid, context=context)
    return self.logits(h), state

  def _check(self, x, state, reset, valid):
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
      raise TypeError(
        f"x of LanguageModel is {x.dtype}{list(x.shape)}; it must be ids [B, T] of an integer dtype"
      )
    checks.flag("reset", reset, x.shape)
    checks.flag("valid", valid, x.shape)
    checks.state_batch(state, x.shape[0])
