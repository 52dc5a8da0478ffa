"""Padding, inner products, and gradients as touched rows, against the dense definitions."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from pallas_kernels.embedding_bag import (
  cpu,
  dot_bag,
  embedding_bag,
  row_bags,
  touched_rows,
  update_rows,
)
from pallas_kernels.embedding_bag import rows as rows_module
from pallas_kernels.embedding_bag.reads import by_digits, by_pairs, sort_reads

# (tokens, bag, rows, dim, chunk): one read, chunks that divide the reads and that do not, a chunk
# larger than all of them, more rows than reads, a row that goes over several chunks or bags, and
# more further bags than are added at once.
CASES = [
  (1, 1, 3, 2, 8), (8, 6, 20, 5, 16), (9, 5, 200, 4, 7), (8, 8, 2, 3, 5), (6, 4, 9, 2, 64),
  (64, 20, 700, 3, 1000), (100, 30, 5, 3, 900),
]  # fmt: skip


def inputs(tokens, bag, rows, dim):
  """Values, ids of which some are padding, weights, vectors."""
  keys = jax.random.split(jax.random.key(tokens), 4)
  return (
    jax.random.normal(keys[0], (rows, dim)),
    jax.random.randint(keys[1], (tokens, bag), 0, rows + 1),
    jax.random.normal(keys[2], (tokens, bag)),
    jax.random.normal(keys[3], (tokens, dim)),
  )


def refused(*tables):
  raise NotImplementedError


def dense(ids, weights, vectors, rows):
  """The table's gradient by numpy, one read after the other."""
  table = np.zeros((rows, vectors.shape[1]), np.float32)
  for (t, j), row in np.ndenumerate(np.asarray(ids)):
    if row < rows:
      table[row] += np.asarray(weights)[t, j] * np.asarray(vectors)[t]
  return table


@pytest.mark.parametrize("name", ["reference", "chunk"])
def test_padding_adds_nothing_and_has_no_gradient(name):
  values, ids, weights, vectors = inputs(9, 5, 4, 3)
  pad = ids == 4
  assert pad.any() and not pad.all()
  values = values.at[-1].set(100.0)  # what padding would read if it were clamped

  @jax.jit
  def run(values, weights, vectors):
    y, pull = jax.vjp(lambda v, w: embedding_bag(v, ids, w, implementation=name), values, weights)
    return y, *pull(vectors), dot_bag(values, ids, vectors, implementation=name)

  y, grad_values, grad_weights, d = run(values, weights, vectors)
  rows = np.concatenate([values, np.zeros((1, 3), np.float32)])[np.asarray(ids)]  # [T, b, dv]
  # Sums of float32 products up to a few hundred: the last row is 100.
  np.testing.assert_allclose(y, np.einsum("tb,tbd->td", weights, rows), rtol=1e-5, atol=1e-4)
  want = np.einsum("td,tbd->tb", vectors, rows)
  for got in (grad_weights, d):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(got[pad], 0)
  np.testing.assert_allclose(grad_values, dense(ids, weights, vectors, 4), rtol=1e-5, atol=1e-5)


def test_gradients_of_inner_products():
  values, ids, weights, vectors = inputs(9, 5, 12, 3)

  def grads(name):
    loss = lambda v, x: jnp.sum(dot_bag(v, ids, x, implementation=name) * weights)  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1)))(values, vectors)

  for got, want in zip(grads("chunk"), grads("reference"), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_ids_out_of_range_are_refused_in_debug_mode_and_are_padding_otherwise():
  values, _, weights, _ = inputs(2, 2, 3, 2)
  ids, padding = jnp.array([[0, -1], [7, 2]]), jnp.array([[0, 3], [3, 2]])
  bag = jax.jit(functools.partial(embedding_bag, implementation="chunk"))
  np.testing.assert_array_equal(bag(values, ids, weights), bag(values, padding, weights))
  checked = checkify.checkify(embedding_bag, errors=checkify.user_checks)
  assert checked(values, padding, weights)[0].get() is None
  message = checked(values, ids, weights)[0].get()
  assert message is not None and "0..2" in message and "-1 to 7" in message


@pytest.mark.parametrize("form", ["best", "xla"])
@pytest.mark.parametrize(("tokens", "bag", "rows", "dim"), [case[:4] for case in CASES])
def test_touched_rows(monkeypatch, form, tokens, bag, rows, dim):
  if form == "xla":
    monkeypatch.setattr(cpu, "_register", refused)
  _, ids, weights, vectors = inputs(tokens, bag, rows, dim)
  run = jax.jit(functools.partial(touched_rows, rows=rows))
  found, again = run(ids, weights, vectors), run(ids, weights, vectors)
  touched = np.setdiff1d(np.unique(ids), [rows])
  assert found.count == len(touched)
  np.testing.assert_array_equal(found.ids[: len(touched)], touched)
  np.testing.assert_array_equal(
    found.ids[len(touched) :], rows + np.arange(len(touched), len(found.ids))
  )
  want = dense(ids, weights, vectors, rows)
  np.testing.assert_allclose(found.dense(rows), want, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found.rows, again.rows)


@pytest.mark.parametrize("by", ["rows", "reads"])
@pytest.mark.parametrize(("tokens", "bag", "rows", "dim", "chunk"), CASES)
def test_every_touched_row_is_updated_once_with_all_of_its_gradient(
  monkeypatch, tokens, bag, rows, dim, chunk, by
):
  """By a CPU's blocks of rows, here of three, and by accelerators' chunks of reads."""
  monkeypatch.setattr(row_bags, "BLOCK_BYTES", 3 * 4 * dim)
  values, ids, weights, vectors = inputs(tokens, bag, rows, dim)
  form = row_bags.update if by == "rows" else functools.partial(rows_module._update, chunk=chunk)

  @jax.jit
  def run(values):
    def begin(carry, gradient, old, live):
      table, times, same = old
      count, squares = carry
      square = jnp.sum(jnp.where(live[:, None], jnp.square(gradient), 0))
      return (count + live.sum(), squares + square), (table, times + 1, same)

    def finish(carry, gradient, old, live):
      table, times, same = old
      return carry, (table - times[:, None] * gradient, times, same)

    arrays = values, jnp.zeros(rows, jnp.int32), jnp.arange(rows)
    start = jnp.int32(0), jnp.float32(0)
    return form((begin, finish), ids, weights, vectors, arrays, start)

  (count, squares), (table, times, same) = run(values)
  want, touched = dense(ids, weights, vectors, rows), np.isin(np.arange(rows), ids)
  np.testing.assert_array_equal(times, touched)
  np.testing.assert_allclose(table, values - want, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(table[~touched], values[~touched])
  np.testing.assert_array_equal(same, np.arange(rows))
  assert count == touched.sum()
  np.testing.assert_allclose(squares, np.square(want).sum(), rtol=1e-5)


@pytest.mark.parametrize("form", ["rows", "reads"])
def test_what_stands_at_padding_is_not_read(form):
  """Neither in touched rows, nor in those that an update drops, nor in its carry."""
  ids = jnp.array([[0, 3], [20, 20], [3, 5]])
  weights, vectors = jnp.ones((3, 2)), jnp.ones((3, 4)).at[1].set(jnp.nan)
  want = np.zeros((20, 4), np.float32)
  want[[0, 3, 5]] = np.array([[1], [2], [1]])
  found = touched_rows(ids, weights, vectors, 20)
  np.testing.assert_array_equal(found.rows[3:], 0)
  np.testing.assert_array_equal(found.dense(20), want)
  fn = lambda total, gradient, old, live: (total + gradient.sum(), old + gradient)  # noqa: E731
  run = row_bags.update if form == "rows" else functools.partial(rows_module._update, chunk=4)
  total, table = run((fn,), ids, weights, vectors, jnp.zeros((20, 4)), 0.0)
  np.testing.assert_array_equal(table, want)
  assert total == want.sum()


@pytest.mark.parametrize("form", ["rows", "reads"])
def test_an_array_that_comes_back_as_it_was_is_not_written(form):
  _, ids, weights, vectors = inputs(8, 6, 20, 5)
  arrays = jnp.zeros((20, 5)), jnp.zeros((20, 7))
  fn = lambda carry, gradient, old, live: (carry, (old[0] + gradient, old[1]))  # noqa: E731
  run = row_bags.update if form == "rows" else functools.partial(rows_module._update, chunk=16)
  program = str(jax.make_jaxpr(lambda *args: run((fn,), *args, 0))(ids, weights, vectors, arrays))
  assert set(re.findall(r":f32\[20,(\d)\] = scatter", program)) == {"5"}


@pytest.mark.parametrize(
  ("reads", "rows"), [(1, 1), (5, 3), (1000, 7), (70_000, 2**20), (2**16, 2**30), (64, 2**31 - 1)]
)
def test_reads_are_sorted_stably(reads, rows):
  """Of one digit, two, and many: a digit has the bits that positions leave of 32."""
  ids = np.random.default_rng(reads).integers(0, rows, (1, reads)).astype(np.int32)
  got = jax.jit(sort_reads, static_argnums=1)(ids, rows)
  order = np.argsort(ids[0], kind="stable")
  np.testing.assert_array_equal(got.order, order)
  np.testing.assert_array_equal(got.row, ids[0][order])
  np.testing.assert_array_equal(got.rank, np.unique(ids[0], return_inverse=True)[1][order])
  for form in (by_pairs, functools.partial(by_digits, largest=rows)):  # whatever is taken here
    row, where = jax.jit(form)(ids[0])
    np.testing.assert_array_equal(where, order)
    np.testing.assert_array_equal(row, ids[0][order])
    assert row.dtype == where.dtype == jnp.int32


def test_without_reads_nothing_is_touched():
  empty = jnp.zeros((0, 4), jnp.int32), jnp.zeros((0, 4)), jnp.zeros((0, 3))
  assert touched_rows(*empty, rows=5).count == 0
  table = jnp.ones((5, 3))
  carry, same = update_rows(*empty, table, lambda *_: None, 7)
  assert carry == 7
  np.testing.assert_array_equal(same, table)
  np.testing.assert_array_equal(embedding_bag(table, *empty[:2]), jnp.zeros((0, 3)))
