"""The loss of a language model, as sums: means are taken once, over everything that was counted."""

import math

import jax
import jax.numpy as jnp


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
  if logits.ndim != 3 or targets.shape != logits.shape[:2]:
    raise ValueError(
      f"targets {list(targets.shape)} do not fit logits {list(logits.shape)}; "
      "they must be [B, T] and [B, T, V]"
    )
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise TypeError(f"targets have dtype {targets.dtype}; they must be integer ids")
  if valid is not None and (valid.shape != targets.shape or valid.dtype != jnp.bool_):
    raise ValueError(
      f"valid is {valid.dtype}{list(valid.shape)}; it must be bool{list(targets.shape)}"
    )
  vocab, logits = logits.shape[-1], logits.astype(jnp.float32)
  if valid is not None:  # before the softmax, so that NaN in padding reaches no gradient
    logits, targets = jnp.where(valid[..., None], logits, 0.0), jnp.where(valid, targets, 0)
  # A negative index would count from the end.
  index = jnp.where(targets < 0, vocab, targets)[..., None]
  chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
  nats = jax.nn.logsumexp(logits, axis=-1) - chosen
  if valid is None:
    return jnp.sum(nats), jnp.float32(nats.size)
  return jnp.sum(jnp.where(valid, nats, 0.0)), jnp.sum(valid, dtype=jnp.float32)


def bits_per_token(nats_per_token: float) -> float:
  """Bits per token of a mean loss in nats."""
  return nats_per_token / math.log(2)


def bits_per_byte(nats_per_token: float, num_tokens: int, num_bytes: int) -> float:
  """Bits per byte of a mean loss in nats, where `num_tokens` stand for `num_bytes` of text."""
  return nats_per_token / math.log(2) * num_tokens / num_bytes
