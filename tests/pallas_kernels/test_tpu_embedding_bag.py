"""The TensorCore's bags: values in interpreters, refusals, what they move, and real compilers."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from benchmarks import tpu_kernels
from pallas_kernels.embedding_bag import dot_bag, embedding_bag, reference, tpu, tpu_plan
from pallas_kernels.embedding_bag.shapes import LARGE, SMALL, Bags
from tests.pallas_kernels import aot


def inputs(shape: Bags, seed=0, most=None):
  """A table, ids (up to `most`, else N: padding), weights, vectors."""
  draw = np.random.default_rng(seed)
  most = shape.rows if most is None else most
  return (
    jnp.asarray(draw.normal(size=shape.values.shape), shape.dtype),
    jnp.asarray(draw.integers(0, most + 1, shape.ids.shape), jnp.int32),
    jnp.asarray(draw.normal(size=shape.ids.shape), jnp.float32),
    jnp.asarray(draw.normal(size=shape.vectors.shape), jnp.float32),
  )


@functools.partial(jax.jit, static_argnames="interpret")
def kernels(values, ids, weights, vectors, interpret=None):
  y = tpu.embedding_bag(values, ids, weights, interpret=interpret)
  return y, tpu.dot_bag(values, ids, vectors, interpret=interpret)


def check(got, values, ids, weights, vectors):
  flat = values.reshape(values.shape[0], -1)
  np.testing.assert_allclose(
    got[0], reference.embedding_bag(flat, ids, weights), rtol=1e-5, atol=1e-4
  )
  np.testing.assert_allclose(got[1], reference.dot_bag(flat, ids, vectors), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SMALL, ids=str)
@hypothesis.given(seed=st.integers(0, 2**16), most=st.sampled_from([None, 0, 3]))
@hypothesis.settings(max_examples=5)
def test_equal_the_definition(shape, seed, most):
  """`most`: padding among the ids, all reads of one row, few rows."""
  arguments = inputs(shape, seed, most)
  check(kernels(*arguments), *arguments)


def test_ids_outside_of_the_table_read_nothing():
  values, ids, weights, vectors = inputs(SMALL[0])
  ids = jnp.where(ids % 3 == 0, jnp.where(ids % 2 == 0, -5, 2**30), ids)
  y, dots = kernels(values, ids, weights, vectors)
  check((y, dots), values, ids, weights, vectors)
  assert not np.any(np.asarray(dots)[(ids < 0) | (ids >= SMALL[0].rows)])


def test_no_copy_races_with_a_sum():
  shape = Bags(4, 3, 8, (128,))
  arguments = inputs(shape)
  check(kernels(*arguments, interpret=pltpu.InterpretParams(detect_races=True)), *arguments)
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize(("tokens", "bag"), [(0, 4), (3, 0)])
def test_empty(tokens, bag):
  values, ids, weights, vectors = inputs(Bags(tokens, bag, 8, (128,)))
  y, dots = kernels(values, ids, weights, vectors)
  assert y.shape == (tokens, 128) and dots.shape == (tokens, bag) and not np.any(y)


def test_gradients_of_the_op_equal_the_definition():
  """By name on a CPU: the kernels are interpreted, in the backward pass too."""
  values, ids, weights, g = inputs(SMALL[1])

  @functools.partial(jax.jit, static_argnums=0)
  def run(name):
    bag = lambda v, w: embedding_bag(v, ids, w, implementation=name)  # noqa: E731
    dot = lambda v, x: dot_bag(v, ids, x, implementation=name)  # noqa: E731
    y, pull = jax.vjp(bag, values, weights)
    d, pull_dot = jax.vjp(dot, values, g)
    return y, d, *pull(g), *pull_dot(weights)

  for got, want in zip(run("tpu"), run("reference"), strict=True):
    assert got.dtype == want.dtype
    tolerance = 1e-2 if want.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
      got.astype(jnp.float32), want.astype(jnp.float32), rtol=tolerance, atol=1e-4
    )


@pytest.mark.parametrize(
  ("shape", "reason"),
  [
    (Bags(2, 4, 8, (100,)), "dv of 128"),
    (Bags(2, 4, 9, (128,)), "N must be a multiple of 8"),
    (Bags(2, 4, 8, (128,), "float16"), "a table of float16"),
    (Bags(2, 4, 8, (4, 128)), "C a multiple of 8"),
    (Bags(2, 4096, 8, (128,)), "at most 2048 fit SMEM"),
    (Bags(2, 2048, 8, (8, 128)), "no two of them fit VMEM"),
  ],
)
def test_refusals_say_why(shape, reason):
  with pytest.raises(NotImplementedError, match=reason):
    jax.eval_shape(tpu.embedding_bag, shape.values, shape.ids, shape.weights)


def test_the_default_leaves_what_is_refused_to_xla():
  shape = Bags(2, 4, 9, (100,))
  values, ids, weights, _ = inputs(shape)
  want = reference.embedding_bag(values, ids, weights)
  np.testing.assert_allclose(embedding_bag(values, ids, weights), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_bytes_are_those_of_the_formula(shape):
  estimate = tpu_plan.cost(shape.values, shape.ids)
  bag = shape.bag + -shape.bag % 8  # whole groups are copied
  size = 2 if len(shape.row) == 2 else 4  # of `[N, dv]` in bfloat16, a pair of rows
  rows, ids = shape.tokens * bag * shape.dim * size, shape.tokens * bag * 4
  assert estimate.bytes_accessed == rows + ids + 4 * shape.tokens * (shape.bag + shape.dim)
  assert estimate.flops == 2 * shape.tokens * bag * shape.dim


@aot.requires_libtpu
@aot.chips
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_compiles(chip, shape):
  """Every shape on every chip; the table is never copied."""
  if chip == "v5e" and shape.values.size > 2**32:
    pytest.skip("16 GiB do not fit a v5e")
  bag = functools.partial(tpu.embedding_bag, interpret=False)
  dot = functools.partial(tpu.dot_bag, interpret=False)
  for kernel, operand in ((bag, shape.weights), (dot, shape.vectors)):
    lowered = aot.lower(chip, kernel, shape.values, shape.ids, operand)
    assert aot.kernels(lowered) == 1
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2**24 < shape.values.size or shape.values.size < 2**20


@aot.requires_libtpu
@aot.chips
def test_the_op_and_its_gradient_call_the_kernels(chip):
  """Through the default implementation: one kernel forward, and the dot bag backward."""
  shape = Bags(256, 32, 2**16, (1024,), "bfloat16")
  operands = shape.values, shape.ids, shape.weights
  forward = aot.lower(chip, embedding_bag, *operands)
  assert aot.kernels(forward) == 1
  forward.compile()

  def gradient(values, ids, weights, g):
    _, pull = jax.vjp(lambda v, w: embedding_bag(v, ids, w), values, weights)
    return pull(g)

  backward = aot.lower(chip, gradient, *operands, shape.vectors)
  assert aot.kernels(backward) == 1
  backward.compile()


@aot.requires_libtpu
def test_the_benchmark_prints_a_line_for_each_op(capsys):
  assert tpu_kernels.main(["--tiny", "--chips", "v5e"]) == 0
  lines = capsys.readouterr().out.splitlines()[2:]
  assert [line.split()[1] for line in lines] == [
    "embedding_bag,",
    "dot_bag,",
    "sums",
    "product_key_topk,",
  ]
