"""Means of models."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from memjax.core import Fixed, param, replace
from memjax.training import average_weights
from memjax.transformer import Attention, Rotary
from memjax.transformer.rope_scaling import YaRN
from tests.training.tiny import Tiny, same_bits, tiny


def moved(model, by):
  return jax.tree.map(lambda a: a + jnp.asarray(by, a.dtype), model)


def test_the_mean_of_equal_models_is_the_model():
  assert same_bits(average_weights(tiny(), moved(tiny(), 0), weight=0.3), tiny())


@pytest.mark.parametrize(("weight", "share"), [(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)])
def test_every_array_moves_by_the_weight(weight, share):
  mean = average_weights(tiny(), moved(tiny(), 2.0), weight=weight)
  for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(tiny()), strict=True):
    assert a.dtype == b.dtype
    assert jnp.allclose(a, b + share, atol=1e-5)


def test_settings_are_the_first_models():
  short = Attention(8, heads=2, rngs=nnx.Rngs(0))
  long = replace(moved(short, 1.0), rotary=Rotary(scaling=YaRN(4.0, 8)))
  mean = average_weights(long, short)
  assert mean.rotary == long.rotary
  assert jnp.allclose(mean.query.kernel[...], short.query.kernel[...] + 0.5, atol=1e-6)


class Permuted(nnx.Module):
  def __init__(self, order):
    init = lambda key, shape, dtype: jnp.asarray(order, dtype)  # noqa: E731
    self.order = param(nnx.Rngs(0), init, (3,), axes=("embed",), dtype=jnp.int32, kind=Fixed)


def test_integers_must_be_equal():
  model = Permuted([0, 1, 2])
  assert same_bits(average_weights(model, Permuted([0, 1, 2])), model)
  with pytest.raises(ValueError, match="order is int32, which has no mean"):
    average_weights(model, Permuted([2, 1, 0]))


def test_bad_arguments():
  with pytest.raises(ValueError, match="weight=1.5"):
    average_weights(tiny(), tiny(), weight=1.5)
  with pytest.raises(ValueError, match="only one of the models has"):
    average_weights(tiny(), Attention(8, heads=2, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match=r"table is float32\[6, 3\] in model, float32\[7, 3\]"):
    average_weights(tiny(), Tiny(nnx.Rngs(0), rows=7))
