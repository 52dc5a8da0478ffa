"""Classes seen for the first time, in the form of Santoro et al. 2016 (arXiv 1605.06065).

Each episode has its own classes: random Gaussian prototypes, with a little noise in each sample.
Every class comes the same number of times, in random order; the label of a sample is shown one
step late, beside the next one. A class's first label can only be guessed.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Episodes:
  """Inputs `[B, T, dim + classes]`, labels `[B, T]` int32, times `[B, T]` int32: how often the
  class has come, with this time, from 1."""

  inputs: jax.Array
  labels: jax.Array
  times: jax.Array


def sample(
  key: jax.Array, batch: int, *, classes: int = 5, times: int = 10, dim: int = 20,
  noise: float = 0.1,
) -> Episodes:  # fmt: skip
  """`batch` episodes of T = classes * times samples; `noise` is the samples' standard deviation."""
  keys = jax.random.split(key, 3)
  prototypes = jax.random.normal(keys[0], (batch, classes, dim))
  labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), (batch, times))
  labels = jax.random.permutation(keys[1], labels, axis=1, independent=True)
  samples = jnp.take_along_axis(prototypes, labels[:, :, None], axis=1)
  samples = samples + noise * jax.random.normal(keys[2], samples.shape)
  shown = jax.nn.one_hot(labels, classes)
  late = jnp.concatenate([jnp.zeros_like(shown[:, :1]), shown[:, :-1]], axis=1)
  seen = jnp.take_along_axis(jnp.cumsum(shown, axis=1), labels[:, :, None], axis=2)[:, :, 0]
  return Episodes(jnp.concatenate([samples, late], axis=-1), labels, seen.astype(jnp.int32))


def accuracy(logits: jax.Array, episodes: Episodes, times: int) -> jax.Array:
  """Accuracy `[times]` at the first, second, ... time that a class comes; logits `[B, T, C]`."""
  right = jnp.argmax(logits, axis=-1) == episodes.labels
  at = episodes.times[:, :, None] == jnp.arange(1, times + 1)[None, None]
  return jnp.sum(right[:, :, None] & at, axis=(0, 1)) / jnp.maximum(jnp.sum(at, axis=(0, 1)), 1)
