"""The TensorCore's sums of sorted reads: values in interpreters, what they move, real compilers."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.embedding_bag import rows, touched_rows, tpu_plan, tpu_rows, update_rows
from tests.pallas_kernels import aot


def inputs(reads, slots, tokens, width, begin=0, seed=0):
  """token, weight, slot (all of `begin .. begin + slots - 1`), vectors, first."""
  draw = np.random.default_rng(seed)
  rest = draw.integers(0, slots, reads - slots)
  slot = begin + np.sort(np.append(np.arange(slots), rest))
  return (
    jnp.asarray(draw.integers(0, tokens, reads), jnp.int32),
    jnp.asarray(draw.normal(size=reads), jnp.float32),
    jnp.asarray(slot, jnp.int32),
    jnp.asarray(draw.normal(size=(tokens, width)), jnp.float32),
    jnp.asarray(draw.normal(size=width), jnp.float32),
  )


@functools.partial(jax.jit, static_argnames=("size", "interpret"))
def kernel(*args, size, interpret=None):
  return tpu_rows.sum_sorted(*args, size, interpret=interpret)


def check(got, args):
  last = int(args[2][-1])  # after it, slots hold anything
  want = rows.sum_sorted(*args, last + 1)
  count = min(got.shape[0], last + 1)
  np.testing.assert_allclose(got[:count], want[:count], rtol=1e-5, atol=1e-5)


# (reads, slots, tokens, width): one read, one row with all of them, a row each; blocks and tiles
# that are whole and that are not; more reads than a grid step takes.
CASES = [(1, 1, 1, 128), (128, 1, 8, 128), (128, 128, 9, 256), (700, 100, 30, 128)]


@pytest.mark.parametrize("case", CASES, ids=str)
@hypothesis.given(seed=st.integers(0, 2**16), begin=st.sampled_from([0, 1]))
@hypothesis.settings(max_examples=2)
def test_equals_the_plain_form(case, begin, seed):
  args = inputs(*case, begin, seed)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tpu_plan, "BLOCK", 2)
    check(kernel(*args, size=int(args[2][-1]) + 3), args)


def test_slots_beyond_the_size_are_dropped():
  args = inputs(300, 100, 10, 128)
  check(kernel(*args, size=64), args)  # whole tiles
  check(kernel(*args, size=61), args)


def test_columns_in_pieces(monkeypatch):
  monkeypatch.setattr(tpu_plan, "BAG", 2**16)  # one tile of 128 columns at a time
  args = inputs(260, 50, 10, 384)
  plan = tpu_plan.plan_for(jnp.zeros((16, 384)), jnp.zeros((3, 128), jnp.int32))
  assert plan.tiles == 1
  check(jax.jit(lambda *args: tpu_rows.sum_sorted(*args, 50))(*args), args)


def test_no_races_and_a_vector_that_is_not_finite_stays_in_its_rows():
  token, weight, slot, vectors, first = inputs(300, 70, 10, 128)
  vectors = vectors.at[3].set(jnp.nan)
  args = token, weight, slot, vectors, first
  params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
  check(kernel(*args, size=75, interpret=params), args)
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  assert not interpret_pallas_call.races.races_found


def test_repeats_bit_for_bit_in_the_order_of_the_reads():
  args = inputs(500, 30, 10, 128)
  np.testing.assert_array_equal(kernel(*args, size=30), kernel(*args, size=30))
  token, weight, slot, vectors, first = map(np.asarray, args)
  want = np.zeros((30, 128), np.float32)
  want[0] = first
  for t, w, s in zip(token, weight, slot, strict=True):
    want[s] += w * vectors[t]
  np.testing.assert_allclose(kernel(*args, size=30), want, rtol=1e-6, atol=1e-6)


def test_touched_rows_and_updates_by_the_kernel(monkeypatch):
  """The forms that a TPU would take, here in the interpreter."""
  sums = functools.partial(tpu_rows.sum_sorted, interpret=None)
  monkeypatch.setattr(rows, "_tpu_sums", sums)
  draw = np.random.default_rng(0)
  ids = jnp.asarray(draw.integers(0, 41, (30, 6)), jnp.int32)  # 40: padding
  weights = jnp.asarray(draw.normal(size=ids.shape), jnp.float32)
  vectors = jnp.asarray(draw.normal(size=(30, 128)), jnp.float32)
  table = jnp.asarray(draw.normal(size=(40, 128)), jnp.float32)
  want = touched_rows(ids, weights, vectors, 40)
  found, summed = rows._touched_at_once(ids, weights, vectors, rows=40, size=40)
  np.testing.assert_array_equal(found, want.ids)
  np.testing.assert_allclose(summed, want.rows, rtol=1e-5, atol=1e-5)

  def fn(count, gradient, old, live):
    return count + jnp.sum(live), old - 0.1 * gradient

  update = functools.partial(rows._update, (fn,), sums=sums, apart=True)
  for chunk in (64, 1000):  # rows that go on from chunk to chunk, and all in one
    count, got = update(ids, weights, vectors, table, jnp.int32(0), chunk=chunk)
    assert count == want.count
    np.testing.assert_allclose(got, table - 0.1 * want.dense(40), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("live", [0, 16, 17, 96])
def test_chunks_of_padding_are_left_out(live):
  """None of which has a row to sum, but for the one in which the last row ends."""
  calls = []

  def sums(*args):
    jax.debug.callback(lambda: calls.append(None))
    return rows.sum_sorted(*args)

  ids = jnp.where(jnp.arange(96).reshape(24, 4) < live, jnp.arange(96).reshape(24, 4) // 2, 48)
  weights, vectors = jnp.ones(ids.shape), jnp.ones((24, 8))
  fn = lambda count, gradient, old, alive: (count + jnp.sum(alive), old + gradient)  # noqa: E731
  update = functools.partial(rows._update, (fn,), sums=sums, apart=True, chunk=16)
  count, got = update(ids, weights, vectors, jnp.zeros((48, 8)), jnp.int32(0))
  jax.effects_barrier()
  assert count == -(-live // 2)
  np.testing.assert_array_equal(got[:, 0], np.bincount(np.arange(live) // 2, minlength=48))
  assert len(calls) == (0 if live == 0 else -(-live // 16) + (live % 16 == 0))


def test_other_widths_are_refused():
  with pytest.raises(NotImplementedError, match="dv of 128"):
    tpu_rows.sum_sorted(*inputs(8, 4, 3, 72), 4)


def shapes(width):
  ids = jax.ShapeDtypeStruct((2048, 32), jnp.int32)
  weights = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
  return ids, weights, jax.ShapeDtypeStruct((2048, width), jnp.float32)


@aot.requires_libtpu
@aot.chips
@pytest.mark.parametrize("width", [512, 2048])
def test_compiles(chip, width):
  """65,536 sorted reads of 2,048 vectors."""
  _, _, vectors = shapes(width)
  reads = [jax.ShapeDtypeStruct((65536,), dtype) for dtype in (jnp.int32, jnp.float32, jnp.int32)]
  first = jax.ShapeDtypeStruct((width,), jnp.float32)
  run = functools.partial(tpu_rows.sum_sorted, size=65536, interpret=False)
  lowered = aot.lower(chip, run, *reads, vectors, first)
  assert aot.kernels(lowered) == 1
  memory = lowered.compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2**24  # the sums are written once, where they stay


@aot.requires_libtpu
@aot.chips
@pytest.mark.slow
def test_touched_rows_and_updates_compile(chip):
  """An update of a table takes one kernel, and temporaries of the rows of a chunk."""
  ids, weights, vectors = shapes(512)
  lowered = aot.lower(chip, lambda *args: touched_rows(*args, 2**20), ids, weights, vectors)
  assert aot.kernels(lowered) == 1
  lowered.compile()

  def update(table, *args):
    fn = lambda carry, gradient, old, live: (carry, (old - gradient).astype(old.dtype))  # noqa: E731
    return update_rows(*args, table, fn, ())[1]

  for dtype in (jnp.float32, jnp.bfloat16):
    table = jax.ShapeDtypeStruct((2**20, 512), dtype)
    lowered = aot.lower(chip, update, table, ids, weights, vectors)
    assert aot.kernels(lowered) == 1
    memory, held = lowered.compile().memory_analysis(), table.size * jnp.dtype(dtype).itemsize
    # What is returned is a copy of the argument, which is not donated; the loop makes no other.
    assert memory.output_size_in_bytes <= held + 2**10
    assert memory.temp_size_in_bytes < held // 2


def test_what_it_moves():
  estimate = tpu_rows.cost(reads=1000, size=60, width=256)
  assert estimate.bytes_accessed == 1000 * (4 * 256 + 12) + 4 * 64 * 256
  assert estimate.flops == 2 * 1000 * 256
