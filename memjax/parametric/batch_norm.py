"""Batch normalisation of queries: running statistics in a call, those of the batch in training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import BatchStat, channel, checks, param
from memjax.core.module import Rest, layer_keys

EMITTED = "batch_stats"


class BatchNorm(nnx.Module):
  """Batch norm over the features of `[B, T, F]`, in float32 (Ioffe and Szegedy, arXiv 1502.03167).

  A call normalises by the running statistics, so rows and tokens stay independent. In training,
  `core.replace(model, use_batch=True)` normalises by the statistics of the call's valid tokens and
  emits them as "batch_stats"; the training step writes them with `apply_batch_stats`.
  """

  def __init__(self, dim: int, *, eps: float = 1e-5, param_dtype=jnp.float32, rngs: nnx.Rngs):
    checks.positive(dim=dim)
    self.eps, self.use_batch = eps, False
    ones, zeros, axes = nnx.initializers.ones, nnx.initializers.zeros, ("embed",)
    self.scale = param(rngs, ones, (dim,), axes=axes, dtype=param_dtype)
    self.bias = param(rngs, zeros, (dim,), axes=axes, dtype=param_dtype)
    self.mean = param(rngs, zeros, (dim,), axes=axes, kind=BatchStat)
    self.variance = param(rngs, ones, (dim,), axes=axes, kind=BatchStat)

  def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean, variance = (
      self._batch(x32, valid) if self.use_batch else (self.mean[...], self.variance[...])
    )
    scale = jax.lax.rsqrt(variance + self.eps) * self.scale[...].astype(jnp.float32)
    shift = self.bias[...].astype(jnp.float32)
    wide = lambda a: a.reshape(1, 1, -1)  # noqa: E731
    return ((x32 - wide(mean)) * wide(scale) + wide(shift)).astype(x.dtype)

  def _batch(self, x, valid):
    if valid is None:
      valid = jnp.ones(x.shape[:2], bool)
    count = jnp.sum(valid).astype(jnp.float32)
    total = jnp.maximum(count, 1)
    chosen = valid[..., None]
    mean = jnp.sum(jnp.where(chosen, x, 0), axis=(0, 1)) / total
    square = jnp.where(chosen, jnp.square(x - mean.reshape(1, 1, -1)), 0)
    variance = jnp.sum(square, axis=(0, 1)) / total
    unbiased = variance * total / jnp.maximum(count - 1, 1)  # what the running variance estimates
    emitted = {"mean": mean, "variance": unbiased, "count": count}
    channel.emit(EMITTED, jax.lax.stop_gradient(emitted))
    return mean, variance


def apply_batch_stats(rest: Rest, emitted: Mapping[str, Any], *, momentum: float = 0.1) -> Rest:
  """Moves the running statistics of every `BatchNorm` towards those that a training call emitted.

  new = (1 - momentum) * old + momentum * batch. Several emissions of one layer (segments of a time
  scan) are averaged by their number of valid tokens; a layer that saw none keeps its statistics.

  Args:
    rest: as returned by `core.split(model)`.
    emitted: `Frame.emitted` of `channel.collect()` around a call with `use_batch=True`;
      other entries are ignored, further leading axes (microbatches) averaged over.
    momentum: weight of the new statistics; 0.1 in the official code.

  Raises:
    ValueError: an emission belongs to no BatchNorm of the model, or to several.
  """
  arrays, batches = dict(rest.arrays), {}
  for key, value in emitted.items():
    *scope, name = key.split("/")
    if name.partition(".")[0] == EMITTED:
      batches.setdefault(tuple(scope), []).append(value)
  for scope, values in batches.items():
    home = _home(arrays, scope)
    features = arrays[f"{home}mean"].shape
    count = jnp.concatenate([v["count"].reshape(-1, *features[:-1], 1) for v in values])
    share = count / jnp.maximum(jnp.sum(count, axis=0, keepdims=True), 1)
    for statistic in ("mean", "variance"):
      old = arrays[f"{home}{statistic}"]
      batch = jnp.concatenate([v[statistic].reshape(-1, *features) for v in values])
      new = (1 - momentum) * old + momentum * jnp.sum(share * batch, axis=0)
      arrays[f"{home}{statistic}"] = jnp.where(jnp.sum(count, axis=0) > 0, new, old)
  return dataclasses.replace(rest, arrays=arrays)


def _home(arrays, scope: tuple[str, ...]) -> str:
  """The prefix of the one BatchNorm whose path goes through the layers that `scope` names."""
  homes = []
  for name in arrays:
    parts = name.split("/")
    prefix = name.removesuffix("mean")
    if parts[-1] == "mean" and layer_keys(name) == scope and f"{prefix}variance" in arrays:
      homes.append(prefix)
  if len(homes) != 1:
    where = "/".join(scope) or "the model itself"
    raise ValueError(
      f"layer {where} emitted batch statistics and has {len(homes)} BatchNorms {homes}; "
      "a layer must have exactly one"
    )
  return homes[0]
