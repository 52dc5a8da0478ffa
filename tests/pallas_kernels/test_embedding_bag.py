"""The weighted bag against its definition (specs: the six tests of the backward pass)."""

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


def run(name, values, ids, weights, g):
  def bag(values, weights):
    return embedding_bag(values, ids, weights, implementation=name)

  y, pull = jax.vjp(jax.jit(bag), values, weights)
  return y, *pull(g)


# Fewer, as many and more than a loop's chunk of slots (8) and of tokens (16), and no multiple of it.
SHAPES = [(1, 1, 3, 2), (5, 3, 7, 4), (16, 8, 50, 6), (37, 21, 40, 5)]


@pytest.mark.parametrize(("tokens", "bag", "rows", "dim"), SHAPES)
def test_equals_the_definition(tokens, bag, rows, dim):
  arguments = inputs(tokens, bag, rows, dim)
  for got, want in zip(run("chunk", *arguments), run("reference", *arguments), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_repeated_ids_in_a_bag_add_up():
  values, _, weights, g = inputs(4, 3, 5, 2)
  ids = jnp.full((4, 3), 2)
  y, grad_values, _ = run("chunk", values, ids, weights, g)
  np.testing.assert_allclose(y, weights.sum(1)[:, None] * values[2:3], rtol=1e-5)
  np.testing.assert_allclose(grad_values[2], jnp.sum(weights.sum(1)[:, None] * g, 0), rtol=1e-5)


def test_rows_that_nobody_read_have_no_gradient():
  values, ids, weights, g = inputs(20, 4, 60, 3)
  _, grad_values, _ = run("chunk", values, ids, weights, g)
  untouched = np.setdiff1d(np.arange(60), np.asarray(ids))
  assert len(untouched)
  np.testing.assert_array_equal(grad_values[untouched], 0)


def test_the_backward_pass_repeats_bit_for_bit():
  arguments = inputs(40, 9, 4, 8)
  for first, second in zip(run("chunk", *arguments), run("chunk", *arguments), strict=True):
    np.testing.assert_array_equal(first, second)


def test_a_weight_of_zero_still_has_a_gradient():
  values, ids, weights, g = inputs(6, 4, 10, 3)
  _, _, grad_weights = run("chunk", values, ids, jnp.zeros_like(weights), g)
  np.testing.assert_allclose(grad_weights, jnp.einsum("td,tbd->tb", g, values[ids]), rtol=1e-5)


def test_all_reads_of_one_row():
  values, _, weights, g = inputs(33, 17, 5, 4)
  arguments = (values, jnp.zeros((33, 17), int), weights, g)
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
    ({"implementation": "gpu"}, ValueError, "'gpu' of embedding_bag"),
  ],
)
def test_errors_name_the_argument(change, error, message):
  values, ids, weights, _ = inputs(2, 4, 3, 2)
  with pytest.raises(error, match=message):
    embedding_bag(**{"values": values, "ids": ids, "weights": weights, **change})
