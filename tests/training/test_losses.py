"""The loss of a language model, against sums by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.training import (
  bits_per_byte,
  bits_per_token,
  chunked_next_token_loss,
  next_token_loss,
)


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


# In chunks.


@pytest.mark.parametrize(("chunk", "masked"), [(1, True), (4, False), (5, True), (16, True)])
def test_in_chunks_it_is_the_same_loss_with_the_same_gradients(chunk, masked):
  h = jax.random.normal(jax.random.key(0), (2, 12, 8))
  kernel = jax.random.normal(jax.random.key(1), (8, 33))
  targets = jax.random.randint(jax.random.key(2), (2, 12), 0, 33)
  valid = jnp.ones((2, 12), bool).at[1, 7:].set(False) if masked else None

  def whole(h, kernel):
    nats, count = next_token_loss(h @ kernel, targets, valid)
    return nats / count, count

  def chunked(h, kernel):
    nats, count = chunked_next_token_loss(lambda h: h @ kernel, h, targets, valid, chunk=chunk)
    return nats / count, count

  got, want = (
    jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(h, kernel)
    for loss in (chunked, whole)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)


def test_with_128k_words_a_chunk_of_logits_is_the_peak():
  """And not the logits of the sequence; the gradient of the kernel is there besides."""
  length, vocab, dim = 512, 131_072, 8

  def size(chunk):
    def loss(h, kernel, targets):
      if chunk is None:
        return next_token_loss(h @ kernel, targets)[0]
      return chunked_next_token_loss(lambda h: h @ kernel, h, targets, chunk=chunk)[0]

    shapes = (1, length, dim), (dim, vocab)
    h, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(h, kernel, targets)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  logits, gradient = 4 * vocab, 4 * vocab * dim
  assert size(None) > length * logits
  for chunk in (32, 16):
    assert chunk * logits < size(chunk) < 4 * chunk * logits + 3 * gradient


def test_a_chunk_that_is_no_size_is_refused():
  with pytest.raises(ValueError, match="chunk=0 must be an integer >= 1"):
    chunked_next_token_loss(lambda h: h, jnp.ones((1, 2, 3)), jnp.ones((1, 2), jnp.int32), chunk=0)
  with pytest.raises(ValueError, match=r"targets \[2, 2\] do not fit h \[1, 2, 3\]"):
    chunked_next_token_loss(lambda h: h, jnp.ones((1, 2, 3)), jnp.ones((2, 2), jnp.int32), chunk=1)
