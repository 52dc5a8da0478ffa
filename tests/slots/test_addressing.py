"""Addresses over slots: content, shift, sharpening, erase and add, and gradients at the edges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.slots import addressing

KEY = jax.random.key(0)


def weights(shape=(2, 3, 7)):
  return jax.nn.softmax(jax.random.normal(KEY, shape), axis=-1)


def test_cosine_is_the_cosine():
  keys = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  memory = np.random.default_rng(1).normal(size=(2, 4, 7)).astype(np.float32)
  expected = np.einsum("bhw,bwn->bhn", keys, memory)
  expected /= np.linalg.norm(keys, axis=2)[:, :, None] * np.linalg.norm(memory, axis=1)[:, None]
  np.testing.assert_allclose(addressing.cosine(keys, memory), expected, rtol=1e-5, atol=1e-6)


def test_cosine_of_zeros_has_a_finite_gradient():
  zeros = jnp.zeros((1, 1, 4)), jnp.zeros((1, 4, 5))
  value, grads = jax.value_and_grad(lambda k, m: addressing.cosine(k, m).sum(), (0, 1))(*zeros)
  assert value == 0
  chex.assert_tree_all_finite(grads)


def test_strong_content_is_one_hot_at_the_largest_cosine():
  memory = jax.random.normal(KEY, (2, 4, 7))
  keys = jnp.swapaxes(memory, 1, 2)[:, 2:5]
  found = addressing.content(keys, jnp.full((2, 3), 1e4), memory)
  expected = jnp.tile(jnp.eye(7)[None, 2:5], (2, 1, 1))
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
def test_shift_moves_slot_j_to_j_plus_offset(offset):
  w = weights()
  kernel = jnp.tile(jax.nn.one_hot(offset + 2, 5)[None, None], (2, 3, 1))
  np.testing.assert_array_equal(addressing.shift(w, kernel), jnp.roll(w, offset, axis=-1))


def test_shift_is_the_circular_convolution():
  w, kernel = np.asarray(weights()), np.asarray(weights((2, 3, 5)))
  expected = np.zeros_like(w)
  for i in range(7):
    for j in range(5):
      expected[..., i] += w[..., (i - (j - 2)) % 7] * kernel[..., j]
  np.testing.assert_allclose(addressing.shift(w, kernel), expected, rtol=1e-5)


def test_shift_over_every_slot_and_over_none():
  w = weights((1, 1, 3))
  everywhere = addressing.shift(w, jnp.full((1, 1, 3), 1 / 3))
  np.testing.assert_allclose(everywhere, np.full((1, 1, 3), 1 / 3), rtol=1e-5)
  np.testing.assert_array_equal(addressing.shift(w, jnp.ones((1, 1, 1))), w)


def test_sharpen_is_the_power_and_leaves_at_one():
  w, gamma = weights(), jnp.full((2, 3), 3.0)
  np.testing.assert_allclose(
    addressing.sharpen(w, gamma), w**3 / (w**3).sum(-1, keepdims=True), rtol=1e-4
  )
  np.testing.assert_allclose(addressing.sharpen(w, jnp.ones((2, 3))), w, rtol=1e-5)


def test_sharpening_turns_a_blur_back_into_its_peak():
  blurred = addressing.shift(jnp.eye(7)[None, 3:4], jnp.asarray([[[0.2, 0.5, 0.3]]]))
  sharp = addressing.sharpen(blurred, jnp.full((1, 1), 40.0))
  np.testing.assert_allclose(sharp[0, 0], jnp.eye(7)[3], atol=1e-5)


@pytest.mark.parametrize("w", [jnp.eye(400)[None, :1], jnp.full((1, 1, 400), 1 / 400)])
def test_sharpen_is_finite_where_powers_underflow(w):
  def total(w, gamma):
    return jnp.sum(addressing.sharpen(w, gamma) * jnp.arange(400.0).reshape(1, 1, -1))

  value, grads = jax.value_and_grad(total, (0, 1))(w, jnp.full((1, 1), 21.0))
  chex.assert_tree_all_finite((value, grads))
  np.testing.assert_allclose(addressing.sharpen(w, jnp.full((1, 1), 21.0)), w, atol=1e-5)


def test_erase_then_add_replaces_one_slot_exactly():
  memory, value = jax.random.normal(KEY, (1, 4, 7)), jnp.asarray([[[1.0, -2.0, 3.0, 0.5]]])
  new = addressing.erase_add(memory, jnp.eye(7)[None, 2:3], jnp.ones((1, 1, 4)), value)
  np.testing.assert_array_equal(new, memory.at[:, :, 2].set(value[:, 0]))


def test_nothing_erased_and_nothing_added_changes_nothing():
  memory = jax.random.normal(KEY, (2, 4, 7))
  none = jnp.zeros((2, 3, 4))
  np.testing.assert_array_equal(addressing.erase_add(memory, weights(), none, none), memory)


def test_all_erasures_come_before_all_additions():
  memory, w = jnp.full((1, 2, 3), 5.0), jnp.tile(jnp.eye(3)[None, :1], (1, 2, 1))
  erase, add = jnp.ones((1, 2, 2)), jnp.asarray([[[1.0, 2.0], [10.0, 20.0]]])
  new = addressing.erase_add(memory, w, erase, add)
  np.testing.assert_array_equal(new[0, :, 0], [11.0, 22.0])


def test_read_is_the_weighted_sum():
  memory = jax.random.normal(KEY, (2, 4, 7))
  expected = np.einsum("bhn,bwn->bhw", weights(), memory)
  np.testing.assert_allclose(addressing.read(weights(), memory), expected, rtol=1e-5, atol=1e-6)


def drawn(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def same_gradients(fn, plain, *args):
  """Values and gradients of `fn` against what JAX makes of `plain`."""

  def weighed(f):
    return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(3 * f(*a))), range(len(args))))

  chex.assert_trees_all_close(weighed(fn)(*args), weighed(plain)(*args), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("reach", [0, 2])
def test_the_written_gradient_of_address_is_that_of_its_parts(reach):
  def plain(keys, strength, gate, kernel, gamma, memory, old):
    found = addressing.content(keys, strength, memory)
    mixed = gate[..., None] * found + (1 - gate[..., None]) * old
    return addressing.sharpen(addressing.shift(mixed, kernel), gamma)

  keys, strength, gate, kernel, gamma, memory, old = drawn(
    (2, 3, 4), (2, 3), (2, 3), (2, 3, 2 * reach + 1), (2, 3), (2, 4, 7), (2, 3, 7)
  )
  gate, kernel, old = jax.nn.sigmoid(gate), jax.nn.softmax(kernel), jax.nn.softmax(old)
  args = keys, 3 * jnp.abs(strength), gate, kernel, 1 + jnp.abs(gamma), memory, old
  same_gradients(addressing.address, plain, *args)


@pytest.mark.parametrize("heads", [1, 3])
def test_the_written_gradients_of_read_and_erase_add_are_those_of_their_equations(heads):
  def plain(memory, w, erase, add):
    kept = jnp.prod(1 - w[:, :, None, :] * erase[..., None], axis=1)
    return memory * kept + jnp.sum(w[:, :, None, :] * add[..., None], axis=1)

  memory, w, erase, add = drawn((2, 4, 7), (2, heads, 7), (2, heads, 4), (2, heads, 4))
  w, erase = jax.nn.softmax(w), jax.nn.sigmoid(erase)
  same_gradients(addressing.erase_add, plain, memory, w, erase, add)
  einsum = lambda w, memory: jnp.einsum("bhn,bwn->bhw", w, memory)  # noqa: E731
  same_gradients(addressing.read, einsum, w, memory)
