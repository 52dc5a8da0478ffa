"""A function in pieces is the function: values, gradients, what it emits; and it needs less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.core import channel, chunk

W = jax.random.normal(jax.random.key(0), (4, 64))


def rows(w, x, scale):
  """Row by row: `[B, T, 4]` and `[T]` to `[B, T]` and `[T, 64]`."""
  h = jnp.tanh(x @ w)
  channel.emit("mean", jnp.mean(h))
  return jnp.sum(h, axis=-1) * scale[None], jnp.sum(h, axis=0)


def inputs(length):
  return jax.random.normal(jax.random.key(1), (2, length, 4)), jnp.arange(1.0, length + 1)


@pytest.mark.parametrize(("length", "size"), [(12, 4), (13, 4), (5, 5)])
@pytest.mark.parametrize("remat", [True, False])
def test_values_and_gradients(length, size, remat):
  x, scale = inputs(length)
  pieces = chunk(rows, in_axes=(None, 1, 0), out_axes=(1, 0), size=size, remat=remat)

  def both(f):
    total = lambda *args: sum(jnp.sum(jnp.sin(a)) for a in f(*args))  # noqa: E731
    return jax.jit(lambda *args: (f(*args), jax.grad(total, argnums=(0, 1, 2))(*args)))(W, x, scale)

  (out, gradients), (want, want_gradients) = both(pieces), both(rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), out, want)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, gradients, want_gradients)


def test_row_wise_outputs_are_equal_bit_for_bit_under_one_compilation():
  x, _ = inputs(12)
  f = lambda x: jnp.tanh(x) * jnp.exp(x)  # noqa: E731
  np.testing.assert_array_equal(jax.jit(chunk(f, in_axes=1, out_axes=1, size=3))(x), jax.jit(f)(x))


def test_filled_up_rows_reach_no_gradient():
  """A row of zeros would have the gradient 0/0."""
  norm = lambda x: jnp.linalg.norm(x, axis=-1)  # noqa: E731
  pieces = chunk(norm, size=2)
  gradient = jax.grad(lambda x: jnp.sum(pieces(x)))(jnp.ones((5, 4)))
  np.testing.assert_allclose(gradient, 0.5, rtol=1e-6)


def test_what_is_emitted_leaves_by_piece():
  with channel.collect() as frame:
    chunk(rows, in_axes=(None, 1, 0), out_axes=(1, 0), size=4)(W, *inputs(12))
  assert frame.emitted["mean"].shape == (3,)


def test_the_gradient_needs_what_a_piece_needs():
  wide = jnp.zeros((4, 1024))
  f = lambda w, x: jnp.sum(jnp.sin(x @ w) ** 2, axis=-1)  # noqa: E731

  def size(f):
    total = lambda w, x: jnp.sum(f(w, x))  # noqa: E731
    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).lower(wide, jnp.zeros((512, 4)))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  pieces = functools.partial(chunk, f, in_axes=(None, 0))
  whole, eight, thirty_two = size(f), size(pieces(size=64)), size(pieces(size=16))
  assert eight < whole / 5 and thirty_two < whole / 15
  assert size(pieces(size=64, remat=False)) > whole / 2


def test_lengths_that_differ_are_named():
  with pytest.raises(ValueError, match=r"lengths \[4, 5\] along in_axes=0"):
    chunk(jnp.add, size=2)(jnp.ones(4), jnp.ones(5))
  with pytest.raises(ValueError, match="size=0"):
    chunk(jnp.sin, size=0)
