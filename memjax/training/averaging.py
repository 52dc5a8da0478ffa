"""Means of models: LongRecipe's last stage (arXiv 2409.00509) merges a model extended to long texts
with the one it came from."""

import jax
import jax.numpy as jnp

from memjax.core.module import variables


def average_weights(model, other, *, weight: float = 0.5):
  """The model whose every floating-point array is `(1 - weight) a + weight b`.

  Integer arrays (permutations, ids) have no mean and must be equal.

  Args:
    model: gives the settings as well (of its rotary positions, say).
    other: with arrays of the same names.
    weight: of `other`, in [0, 1].

  Raises:
    ValueError: the models differ in names, shapes, dtypes or integer arrays, or the weight is out
      of range.
  """
  if not 0 <= weight <= 1:
    raise ValueError(f"weight={weight!r} must lie in [0, 1]")
  names, others = variables(model), variables(other)
  if names.keys() != others.keys():
    one = sorted(names.keys() ^ others.keys())[0]
    raise ValueError(f"only one of the models has {one}: build both with the same layers")
  means = []
  for name in names:
    a, b = names[name][...], others[name][...]
    if a.shape != b.shape or a.dtype != b.dtype:
      raise ValueError(
        f"{name} is {a.dtype}{list(a.shape)} in model, {b.dtype}{list(b.shape)} in other"
      )
    if jnp.issubdtype(a.dtype, jnp.floating):
      means.append((a + weight * (b - a)).astype(a.dtype))
      continue
    if not jnp.array_equal(a, b):
      raise ValueError(f"{name} is {a.dtype}, which has no mean, and differs between the models")
    means.append(a)
  return jax.tree.unflatten(jax.tree.structure(model), means)
