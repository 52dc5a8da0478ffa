"""The loss of a language model, as sums: means are taken once, over everything that was counted."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from memjax.core import checks
from memjax.core import chunk as in_chunks
from memjax.core import sequence_sharding as sequence
from memjax.core.sequence_sharding import SequenceSharding


def next_token_loss(
  logits: jax.Array, targets: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy, summed: `sum over valid of (logsumexp(logits) - logits[target])`.

  Args:
    logits: `[B, T, V]` float; the softmax is taken in float32.
    targets: `[B, T]` integer ids below V. A target out of range gives NaN, never another id's loss.
    valid: `[B, T]` bool; tokens that are not valid count for nothing, also when their logits are
      NaN.

  Returns:
    nats: float32, their sum.
    count: float32, the number of tokens.

  Raises:
    ValueError: shapes do not fit, or valid is not bool.
    TypeError: targets are not integers.
  """
  _check(logits, targets, valid, "logits")
  nats = _each(logits, targets, valid)
  count = jnp.float32(nats.size) if valid is None else jnp.sum(valid, dtype=jnp.float32)
  return jnp.sum(nats), count


def chunked_next_token_loss(
  logits: Callable[[jax.Array], jax.Array], h: jax.Array, targets: jax.Array,
  valid: jax.Array | None = None, *, chunk: int, sharding: SequenceSharding | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """`next_token_loss(logits(h), targets, valid)` without the logits of all tokens.

  Back-propagation makes a chunk's logits again, so that no more than `[B, chunk, V]` is there at a
  time, forwards and backwards, for one more product.

  Args:
    logits: `[B, t, D] -> [B, t, V]`, a token at a time: a model's `logits`.
    h: `[B, T, D]` float.   targets, valid: as for `next_token_loss`.
    chunk: tokens of a row at a time.
    sharding: how tokens lie on a mesh; where time is cut, a chunk has as many of each piece.
  """
  checks.positive(chunk=chunk)
  _check(h, targets, valid, "h")
  if sharding is not None and sharding.time:
    length = h.shape[1]
    chunk = min(chunk, length)
    if length % chunk:
      raise ValueError(
        f"chunk={chunk} does not divide T={length}, whose tokens are cut over devices"
      )
    sharding.divide(chunk=(chunk, sharding.time))
    h, targets, valid = (
      jax.tree.map(lambda a: sequence.fold(a, chunk, sharding), a) for a in (h, targets, valid)
    )
    inner, size = logits, 1
    logits = lambda h: inner(h[:, 0])[:, None]  # noqa: E731
  else:
    size = chunk
  axes = (1, 1, None if valid is None else 1)
  each = in_chunks(
    lambda h, targets, valid: _each(logits(h), targets, valid), in_axes=axes, out_axes=1, size=size
  )
  nats = each(h, targets, valid)
  count = jnp.float32(nats.size) if valid is None else jnp.sum(valid, dtype=jnp.float32)
  return jnp.sum(nats), count


def _check(array, targets, valid, name: str) -> None:
  size = "V" if name == "logits" else "D"
  if array.ndim != 3 or targets.shape != array.shape[:2]:
    raise ValueError(
      f"targets {list(targets.shape)} do not fit {name} {list(array.shape)}; "
      f"they must be [B, T] and [B, T, {size}]"
    )
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise TypeError(f"targets have dtype {targets.dtype}; they must be integer ids")
  if valid is not None and (valid.shape != targets.shape or valid.dtype != jnp.bool_):
    raise ValueError(
      f"valid is {valid.dtype}{list(valid.shape)}; it must be bool{list(targets.shape)}"
    )


def _each(logits, targets, valid):
  """Nats of every token `[B, T]`; 0 where it is not valid."""
  vocab, logits = logits.shape[-1], logits.astype(jnp.float32)
  if valid is not None:  # before the softmax, so that NaN in padding reaches no gradient
    logits, targets = jnp.where(valid[..., None], logits, 0.0), jnp.where(valid, targets, 0)
  # A negative index would count from the end.
  index = jnp.where(targets < 0, vocab, targets)[..., None]
  chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
  nats = jax.nn.logsumexp(logits, axis=-1) - chosen
  return nats if valid is None else jnp.where(valid, nats, 0.0)


def bits_per_token(nats_per_token: float) -> float:
  """Bits per token of a mean loss in nats."""
  return nats_per_token / math.log(2)


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: int) -> float:
  """Bits per byte of a mean loss in nats, where `num_tokens` stand for `num_bytes` of text."""
  return nats_per_token / math.log(2) * num_tokens / num_bytes
