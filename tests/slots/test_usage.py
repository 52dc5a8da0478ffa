"""Least-recently-used selection and allocation of free slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.slots.usage import EPS, allocate, least_used


def test_least_used_come_first_and_ties_keep_their_order():
  usage = jnp.asarray([[3.0, 0, 2, 0, 1], [-0.0, 0, 0, -0.0, 0]])
  np.testing.assert_array_equal(least_used(usage, 3), [[1, 3, 4], [0, 1, 2]])
  assert least_used(usage, 3).dtype == jnp.int32


def test_unused_slots_are_given_in_the_order_of_slots():
  np.testing.assert_allclose(allocate(jnp.zeros((2, 6))), np.eye(6)[[0, 0]], atol=2e-6)


def test_residues_of_usage_do_not_count():
  """Below 6e-8, where 1 - u cannot tell them apart, slots are equally free."""
  usage = jnp.asarray([[1.0, 3e-9, 1e-12, 0]])
  assert jnp.argmax(allocate(usage)) == 1


@pytest.mark.parametrize("free", [0, 3, 5])
def test_one_free_slot_takes_all(free):
  usage = jnp.ones((1, 6)).at[0, free].set(0)
  np.testing.assert_allclose(allocate(usage)[0], np.eye(6)[free], atol=2e-6)


def test_nothing_is_allocated_where_all_is_used():
  np.testing.assert_array_equal(allocate(jnp.ones((2, 5))), 0)


def test_values_and_gradients_are_those_of_the_definition():
  usage = jax.random.uniform(jax.random.key(0), (3, 7))
  weights = jax.random.normal(jax.random.key(1), (3, 7))
  value, gradient = jax.value_and_grad(lambda u: jnp.sum(allocate(u) * weights))(usage)
  total = 0.0
  for u, w, got in zip(usage, weights, gradient, strict=True):
    order = np.argsort(np.asarray(u), kind="stable")

    def loss(u, w=w, order=order):
      used, found, taken = EPS + (1 - EPS) * u, 0.0, 1.0
      for slot in order:
        found, taken = found + w[slot] * (1 - used[slot]) * taken, taken * used[slot]
      return found

    expected, wanted = jax.value_and_grad(loss)(u)
    total += expected
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(value, total, rtol=1e-5)
