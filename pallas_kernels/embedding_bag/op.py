"""The public function: checks, choice of an implementation, gradients."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.embedding_bag import chunk, reference


def embedding_bag(
  values: jax.Array, ids: jax.Array, weights: jax.Array, *, implementation: str | None = None
) -> jax.Array:
  """Weighted sums of rows: `y[t] = sum_j weights[t, j] values[ids[t, j]]`, in float32.

  Args:
    values: `[N, dv]` float. Rows are widened as they are read; the table is never cast.
    ids: `[T, b]` integer in 0..N-1 (another gives an unspecified result); repeated ids add up.
    weights: `[T, b]` float.
    implementation: "reference" (makes `[T, b, dv]`), "chunk" (XLA), or None for the best here.

  Returns:
    `[T, dv]` float32. The gradient of values is dense; rows that nobody read get zeros.
  """
  _check(values, ids, weights)
  run = dispatch.choose("embedding_bag", implementation, IMPLEMENTATIONS, "chunk")
  return run(values, ids, weights)


def _check(values, ids, weights) -> None:
  if values.ndim != 2:
    raise ValueError(f"values has shape {list(values.shape)}; it must be [N, dv]")
  if ids.ndim != 2 or ids.shape != weights.shape:
    raise ValueError(f"ids {list(ids.shape)} and weights {list(weights.shape)} must both be [T, b]")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"ids has dtype {ids.dtype}; it must be an integer dtype")
  for name, array in {"values": values, "weights": weights}.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise TypeError(f"{name} has dtype {array.dtype}; it must be floating")


@jax.custom_vjp
def _bag(values, ids, weights):
  return chunk.embedding_bag(values, ids, weights)


def _forward(values, ids, weights):
  return chunk.embedding_bag(values, ids, weights), (values, ids, weights)


def _backward(residuals, cotangent):
  values, ids, weights = residuals
  grad_values, grad_weights = chunk.gradients(values, ids, weights, cotangent)
  return grad_values, None, grad_weights.astype(weights.dtype)


_bag.defvjp(_forward, _backward)

IMPLEMENTATIONS = {"reference": reference.embedding_bag, "chunk": _bag}
