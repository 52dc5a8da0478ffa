"""The TensorCore's search: values in interpreters, refusals, what it moves, and real compilers."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.product_key_topk import chunk, product_key_topk, reference, tpu
from pallas_kernels.product_key_topk.shapes import LARGE, SMALL, Search
from tests.pallas_kernels import aot


def inputs(shape: Search, seed=0):
  draw = np.random.default_rng(seed)
  return tuple(jnp.asarray(draw.normal(size=a.shape), a.dtype) for a in (shape.queries, shape.keys))


@functools.partial(jax.jit, static_argnames=("top_k", "interpret"))
def search(queries, keys, top_k, interpret=None):
  return tpu.product_key_topk(queries, keys, top_k, interpret=interpret)


@pytest.mark.parametrize("shape", SMALL, ids=str)
@hypothesis.given(seed=st.integers(0, 2**16))
@hypothesis.settings(max_examples=5)
def test_equals_the_definition(shape, seed):
  queries, keys = inputs(shape, seed)
  scores, ids = search(queries, keys, shape.top_k)
  want, want_ids = reference.product_key_topk(queries, keys, shape.top_k)
  assert scores.dtype == jnp.float32 and ids.dtype == jnp.int32
  np.testing.assert_array_equal(ids, want_ids)
  np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_long_lists_are_sorted_half_by_half(monkeypatch):
  """As lists of more than `STAGED` entries are, which take long to compile for a CPU."""
  monkeypatch.setattr(tpu, "STAGED", 4)
  shape = Search(2, 1, 4, 40, 8)
  queries, keys = inputs(shape)
  _, ids = jax.jit(lambda q, k: tpu.product_key_topk(q, k, shape.top_k))(queries, keys)
  np.testing.assert_array_equal(ids, reference.product_key_topk(queries, keys, shape.top_k)[1])


def test_bfloat16_scores_are_float32():
  shape = Search(5, 1, 8, 33, 8, "bfloat16")
  queries, keys = inputs(shape)
  scores, ids = search(queries, keys, shape.top_k)
  wide = queries.astype(jnp.float32), keys.astype(jnp.float32)
  want, want_ids = reference.product_key_topk(*wide, shape.top_k)
  np.testing.assert_array_equal(ids, want_ids)
  np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)


def test_ties_give_distinct_slots_of_the_table():
  """Also where scores are minus infinity, as those of the keys that pad a block."""
  shape = SMALL[1]
  _, keys = inputs(shape)
  scores, ids = search(jnp.zeros(shape.queries.shape), keys, shape.top_k)
  np.testing.assert_array_equal(scores, 0)
  assert all(len(set(row)) == 8 for row in np.asarray(ids)[:, 0].tolist())
  _, ids = search(jnp.full(shape.queries.shape, jnp.nan), keys, shape.top_k)
  assert ids.min() >= 0 and ids.max() < shape.n**2


def test_no_races():
  shape = SMALL[2]
  queries, keys = inputs(shape)
  interpret = pltpu.InterpretParams(detect_races=True)
  scores, _ = search(queries, keys, shape.top_k, interpret=interpret)
  np.testing.assert_allclose(
    scores, reference.product_key_topk(queries, keys, shape.top_k)[0], rtol=1e-5
  )
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


def test_gradients_of_the_op_equal_the_definition():
  shape = SMALL[0]
  queries, keys = inputs(shape)

  @functools.partial(jax.jit, static_argnums=0)
  def run(name):
    loss = lambda q, k: jnp.sum(  # noqa: E731
      jnp.sin(product_key_topk(q, k, shape.top_k, implementation=name)[0])
    )
    return jax.grad(loss, (0, 1))(queries, keys)

  for got, want in zip(run("tpu"), run("reference"), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_empty():
  scores, ids = search(*inputs(Search(0, 2, 8, 16, 3)), 3)
  assert scores.shape == ids.shape == (0, 2, 3)


def test_gradients_of_a_few_tokens_at_a_time_are_those_of_all(monkeypatch):
  shape = Search(13, 2, 6, 8, 3)
  queries, keys = inputs(shape)
  _, ids = reference.product_key_topk(queries, keys, shape.top_k)
  cotangent = jnp.asarray(np.random.default_rng(1).normal(size=ids.shape), jnp.float32)
  want = chunk.gradients(queries, keys, ids, cotangent)
  monkeypatch.setattr(chunk, "_scattered", chunk._compared)  # the TPU's form
  monkeypatch.setattr(chunk, "SCORES", 4 * 2 * 2 * 8)  # of four tokens
  for got, one in zip(chunk.gradients(queries, keys, ids, cotangent), want, strict=True):
    np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("shape", "reason"),
  [
    (Search(2, 1, 4, 200, 129), "top_k=129: at most 128"),
    (Search(2, 1, 1024, 2**14, 8), "at most 25165824 fit VMEM"),
  ],
)
def test_refusals_say_why(shape, reason):
  with pytest.raises(NotImplementedError, match=reason):
    jax.eval_shape(lambda q, k: tpu.product_key_topk(q, k, shape.top_k), shape.queries, shape.keys)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_bytes_are_those_of_the_formula(shape):
  estimate = tpu.cost(shape.queries, shape.keys, shape.top_k)
  block = 8 * max(8, 1 << (shape.top_k - 1).bit_length())
  n = -(-shape.n // block) * block
  read = shape.queries.size + shape.heads * n * shape.width
  written = 2 * 4 * shape.tokens * shape.heads * shape.top_k
  assert estimate.bytes_accessed == read * jnp.dtype(shape.dtype).itemsize + written
  assert estimate.flops == 2 * shape.tokens * shape.heads * n * shape.width


@aot.requires_libtpu
@aot.chips
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_compiles(chip, shape):
  """The op by default, on every chip; `[H, 2, T, n]` scores never stand in memory."""
  op = functools.partial(product_key_topk, top_k=shape.top_k)
  lowered = aot.lower(chip, op, shape.queries, shape.keys)
  assert aot.kernels(lowered) == 1
  memory = lowered.compile().memory_analysis()
  scores = 4 * 2 * shape.tokens * shape.heads * shape.n
  assert memory.temp_size_in_bytes < max(scores / 2, 2**23)


@aot.requires_libtpu
def test_the_gradient_never_has_all_scores():
  chip, shape = "v5e", LARGE[0]

  def gradient(queries, keys):
    loss = lambda q, k: jnp.sum(jnp.sin(product_key_topk(q, k, shape.top_k)[0]))  # noqa: E731
    return jax.grad(loss, (0, 1))(queries, keys)

  lowered = aot.lower(chip, gradient, shape.queries, shape.keys)
  assert aot.kernels(lowered) == 1
  scores = 4 * 2 * shape.tokens * shape.heads * shape.n
  assert lowered.compile().memory_analysis().temp_size_in_bytes < scores / 2
