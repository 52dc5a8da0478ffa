"""The weighted bag against its definition (specs: the six tests of the backward pass)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.embedding_bag import embedding_bag


def inputs(tokens, bag, rows, dim, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(tokens), 4)
  return (
    jax.random.normal(keys[0], (rows, dim)).astype(dtype),
    jax.random.randint(keys[1], (tokens, bag), 0, rows),
    jax.random.normal(keys[2], (tokens, bag)),
    jax.random.normal(keys[3], (tokens, dim)),
  )


@functools.partial(jax.jit, static_argnums=0)
def run(name, values, ids, weights, g):
  """y, dV, dw of one implementation."""

  def bag(values, weights):
    return embedding_bag(values, ids, weights, implementation=name)

  y, pull = jax.vjp(bag, values, weights)
  return y, *pull(g)


# Fewer, as many, and more than a loop takes at once (8 slots, 16 tokens), and no multiple of it.
# The last two: strips of columns in one pass, and in two.
SHAPES = [(1, 1, 3, 2), (16, 8, 50, 6), (21, 11, 30, 5), (5, 3, 20, 64), (3, 20, 8, 1056)]
ONE = SHAPES[2]  # most tests share a shape, and so a compilation


@pytest.mark.parametrize(("tokens", "bag", "rows", "dim"), SHAPES)
def test_equals_the_definition(tokens, bag, rows, dim):
  arguments = inputs(tokens, bag, rows, dim)
  for got, want in zip(run("chunk", *arguments), run("reference", *arguments), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_repeated_ids_in_a_bag_add_up():
  values, ids, weights, g = inputs(*ONE)
  ids = jnp.full_like(ids, 2)
  y, grad_values, _ = run("chunk", values, ids, weights, g)
  want = weights.sum(1)[:, None] * values[2:3]
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
  want = jnp.sum(weights.sum(1)[:, None] * g, 0)
  np.testing.assert_allclose(grad_values[2], want, rtol=1e-5, atol=1e-5)


def test_rows_that_nobody_read_have_no_gradient():
  values, ids, weights, g = inputs(*ONE)
  ids = ids % 7
  _, grad_values, _ = run("chunk", values, ids, weights, g)
  untouched = np.setdiff1d(np.arange(ONE[2]), np.asarray(ids))
  assert len(untouched) >= 23
  np.testing.assert_array_equal(grad_values[untouched], 0)


def test_the_backward_pass_repeats_bit_for_bit():
  arguments = inputs(*ONE)
  for first, second in zip(run("chunk", *arguments), run("chunk", *arguments), strict=True):
    np.testing.assert_array_equal(first, second)


def test_a_weight_of_zero_still_has_a_gradient():
  values, ids, weights, g = inputs(*ONE)
  _, _, grad_weights = run("chunk", values, ids, jnp.zeros_like(weights), g)
  want = np.einsum("td,tbd->tb", g, values[ids])
  np.testing.assert_allclose(grad_weights, want, rtol=1e-5, atol=1e-5)


def test_all_reads_of_one_row():
  values, ids, weights, g = inputs(*ONE)
  arguments = (values, jnp.zeros_like(ids), weights, g)
  for got, want in zip(run("chunk", *arguments), run("reference", *arguments), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bfloat16_table_is_summed_in_float32():
  values, ids, weights, g = inputs(9, 12, 6, 4, jnp.bfloat16)
  y, grad_values, _ = run("chunk", values, ids, weights, g)
  wide, wide_values, _ = run("reference", values.astype(jnp.float32), ids, weights, g)
  assert y.dtype == jnp.float32 and grad_values.dtype == jnp.bfloat16
  np.testing.assert_allclose(y, wide, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(grad_values, wide_values.astype(jnp.bfloat16))  # rounded once


def test_never_all_rows_at_once():
  """No `[T, b, dv]` in the compiled gradient, forward or backward."""
  tokens, bag, dim = 64, 24, 10
  values, ids, weights, _ = inputs(tokens, bag, 30, dim)
  grad = jax.grad(lambda v, w: jnp.sum(jnp.square(embedding_bag(v, ids, w))), (0, 1))
  text = jax.jit(grad).lower(values, weights).compile().as_text()
  sizes = [np.prod([int(n) for n in s.split(",")]) for s in re.findall(r"f32\[([\d,]+)\]", text)]
  assert max(sizes) < tokens * bag * dim


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"values": jnp.zeros(3)}, ValueError, r"values has shape \[3\].*\[N, dv\]"),
    ({"weights": jnp.zeros((2, 3))}, ValueError, r"ids \[2, 4\] and weights \[2, 3\].*\[T, b\]"),
    ({"ids": jnp.zeros((2, 4))}, TypeError, "ids has dtype float32"),
    ({"values": jnp.zeros((3, 2), int)}, TypeError, "values has dtype int32"),
    ({"implementation": "metal"}, ValueError, "'metal' of embedding_bag"),
  ],
)
def test_errors_name_the_argument(change, error, message):
  values, ids, weights, _ = inputs(2, 4, 3, 2)
  with pytest.raises(error, match=message):
    embedding_bag(**{"values": values, "ids": ids, "weights": weights, **change})
