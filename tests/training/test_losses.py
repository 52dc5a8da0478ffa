"""The loss of a language model, against sums by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.training import bits_per_byte, bits_per_token, next_token_loss


def test_sums_of_nats_and_tokens():
  logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  targets = np.array([[0, 4, 2], [1, 1, 3]])
  valid = np.array([[True, False, True], [True, True, False]])
  probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  each = -np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])
  nats, count = next_token_loss(jnp.array(logits), jnp.array(targets), jnp.array(valid))
  np.testing.assert_allclose(nats, each[valid].sum(), rtol=1e-6)
  assert count == 4
  nats, count = next_token_loss(jnp.array(logits), jnp.array(targets))
  np.testing.assert_allclose(nats, each.sum(), rtol=1e-6)
  assert count == 6


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
  nats, count = next_token_loss(jnp.zeros((1, 4, 8)), jnp.zeros((1, 4), jnp.int32))
  assert bits_per_token(nats / count) == pytest.approx(3)
  assert bits_per_byte(float(nats / count), 100, 300) == pytest.approx(1)


def test_padding_with_nan_reaches_neither_value_nor_gradient():
  logits = jnp.zeros((1, 3, 4)).at[0, 1].set(jnp.nan)
  targets, valid = jnp.array([[1, -7, 2]]), jnp.array([[True, False, True]])
  total = lambda logits: next_token_loss(logits, targets, valid)[0]  # noqa: E731
  value, gradient = jax.value_and_grad(total)(logits)
  assert value == pytest.approx(2 * math.log(4))
  assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("target", [-1, 4])
def test_a_target_out_of_range_is_nan(target):
  nats, _ = next_token_loss(jnp.zeros((1, 1, 4)), jnp.array([[target]]))
  assert jnp.isnan(nats)


@pytest.mark.parametrize(
  ("targets", "valid", "error", "message"),
  [
    (jnp.zeros((2, 2), jnp.int32), None, ValueError, r"\[2, 2\] do not fit logits \[2, 3, 5\]"),
    (jnp.zeros((2, 3)), None, TypeError, "integer"),
    (jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3)), ValueError, r"must be bool\[2, 3\]"),
  ],
)
def test_what_does_not_fit_is_named(targets, valid, error, message):
  with pytest.raises(error, match=message):
    next_token_loss(jnp.zeros((2, 3, 5)), targets, valid)
