"""The GPU kernels without a GPU: values from the interpreters, and lowered programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_sparse
from pallas_kernels import compat
from pallas_kernels.embedding_bag import (
  embedding_bag,
  gpu,
  gpu_rows,
  reference,
  rows,
  touched_rows,
  update_rows,
)

TRITON, MOSAIC = "__gpu$xla.gpu.triton", "mosaic_gpu_v2"
ROWS = 7


def inputs(tokens, bag, columns, dtype, rows=ROWS):
  """values, ids (some of them padding, and others that are no ids), weights, vectors."""
  rng = np.random.default_rng(tokens)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  ids = jnp.asarray(rng.integers(-1, rows + 2, (tokens, bag)), jnp.int32)
  return normal(rows, columns).astype(dtype), ids, normal(tokens, bag), normal(tokens, columns)


def form(compiler, columns, itemsize):
  if compiler == "triton":
    return gpu.Triton(columns, itemsize, interpret=True)
  params = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
  return gpu.Mosaic(columns, itemsize, interpret=params.InterpretGPUParams())


@pytest.fixture(autouse=True)
def few_rows_in_flight(monkeypatch):
  """Two rows of 256 float32 at once, so that five are two groups and a rest."""
  monkeypatch.setattr(gpu, "IN_FLIGHT", 2048)


# One block of columns, and several of them; the last of Triton's is masked.
CASES = [
  ("mosaic", 256, "float32"),
  ("mosaic", 256, "bfloat16"),
  ("mosaic", 384, "float32"),
  ("triton", 72, "float32"),
  ("triton", 300, "bfloat16"),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, monkeypatch):
  monkeypatch.setattr(gpu, "COLUMNS", 256)
  return request.param


def test_bag_equals_the_definition(case):
  compiler, columns, dtype = case
  values, ids, weights, _ = inputs(2, 5, columns, dtype)
  on = form(compiler, columns, values.dtype.itemsize)
  got = jax.jit(lambda *args: gpu.run_bag(on, *args))(values, ids, weights)
  np.testing.assert_allclose(
    got, reference.embedding_bag(values, ids, weights), rtol=1e-5, atol=1e-5
  )


def test_dots_equal_the_definition(case):
  compiler, columns, dtype = case
  values, ids, _, vectors = inputs(2, 5, columns, dtype)
  on = form(compiler, columns, values.dtype.itemsize)
  got = jax.jit(lambda *args: gpu.run_dots(on, *args))(values, ids, vectors)
  np.testing.assert_allclose(got, reference.dot_bag(values, ids, vectors), rtol=1e-5, atol=1e-4)


def test_touched_rows_equal_those_of_the_plain_form(case):
  compiler, columns, dtype = case
  _, ids, weights, vectors = inputs(3, 5, columns, dtype)
  vectors = vectors.astype(dtype)
  on = form(compiler, columns, vectors.dtype.itemsize)
  got = jax.jit(lambda *args: gpu_rows.run_touched(on, *args, ROWS, ROWS))(ids, weights, vectors)
  want = touched_rows(ids, weights, vectors, ROWS)
  np.testing.assert_array_equal(got[0], want.ids)
  assert want.count < ROWS  # so one of them is empty, and must be zero
  np.testing.assert_allclose(got[1], want.rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("begin", [0, 1])
def test_sums_of_sorted_reads_equal_the_plain_form(case, begin):
  """Slot 0 goes on with what it held, whether it has reads or not."""
  compiler, columns, dtype = case
  vectors = inputs(3, 2, columns, dtype)[3].astype(dtype)
  token, weight = jnp.array([2, 0, 0, 1, 2, 1, 2]), jnp.arange(7.0) - 2
  slot, first = jnp.array([0, 0, 1, 2, 2, 2, 3]) + begin, jnp.arange(float(columns))
  args = token, weight, slot, vectors, first
  on = form(compiler, columns, vectors.dtype.itemsize)
  got = jax.jit(lambda *args: gpu_rows.run_sums(on, *args, 6))(*args)
  np.testing.assert_allclose(got, rows.sum_sorted(*args, 6), rtol=1e-5, atol=1e-5)


def test_padding_adds_nothing_though_the_last_row_is_not_finite():
  values, ids, weights, vectors = inputs(1, 5, 256, "float32")
  values, ids = values.at[ROWS - 1].set(jnp.nan), jnp.full_like(ids, ROWS).at[0, 0].set(2)
  on = form("triton", 256, 4)
  np.testing.assert_allclose(
    gpu.run_bag(on, values, ids, weights)[0], weights[0, 0] * values[2], rtol=1e-6
  )
  np.testing.assert_array_equal(gpu.run_dots(on, values, ids, vectors)[0, 1:], 0)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty(shape):
  tokens, bag, rows, columns = shape
  values, ids, weights, vectors = inputs(tokens, bag, columns, "float32", rows)
  on = gpu.Triton(columns, 4)
  np.testing.assert_array_equal(gpu.run_bag(on, values, ids, weights), np.zeros((tokens, columns)))
  np.testing.assert_array_equal(gpu.run_dots(on, values, ids, vectors), np.zeros((tokens, bag)))
  size = min(rows, tokens * bag)
  found, summed = gpu_rows.run_touched(on, ids * 0 + rows, weights, vectors, rows, size)
  np.testing.assert_array_equal(found, rows + np.arange(size))
  np.testing.assert_array_equal(summed, np.zeros((size, columns)))


@pytest.fixture
def chip(monkeypatch):
  """A function that says which chip programs are traced for."""

  def set_chip(capability):
    found = compat.Chip("cuda", "a GPU", capability=capability) if capability else compat.Chip()
    monkeypatch.setattr(compat, "chip", lambda: found)

  return set_chip


def kernels(fn, *shapes) -> list[str]:
  """The kernels of `fn` lowered for CUDA."""
  check = jax.export.DisabledSafetyCheck.custom_call(TRITON)
  exported = jax.export.export(jax.jit(fn), platforms=["cuda"], disabled_checks=[check])(*shapes)
  return re.findall(r"custom_call @((?:mosaic|__gpu)[\w$.]+)", exported.mlir_module())


def shapes(columns, dtype=jnp.bfloat16, rows=2**22):
  table = jax.ShapeDtypeStruct((rows, columns), dtype)
  ids = jax.ShapeDtypeStruct((16, 32), jnp.int32)
  weights = jax.ShapeDtypeStruct((16, 32), jnp.float32)
  return table, ids, weights, jax.ShapeDtypeStruct((16, columns), jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("capability", "columns", "kernel"),
  [(90, 2048, MOSAIC), (100, 640, MOSAIC), (90, 72, TRITON), (80, 2048, TRITON)],
)
def test_lowered_for(chip, capability, columns, kernel, dtype):
  if kernel == TRITON and jax.__version_info__ >= (0, 12):
    pytest.skip("jax 0.12 lowers Triton, which it deprecates, only where there is a GPU")
  chip(capability)
  values, ids, weights, vectors = shapes(columns, dtype)
  assert kernels(lambda *args: gpu.embedding_bag(*args), values, ids, weights) == [kernel]
  assert kernels(lambda *args: gpu.dot_bag(*args), values, ids, vectors) == [kernel]
  grad = lambda *args: touched_rows(*args, values.shape[0]).rows  # noqa: E731
  assert kernels(grad, ids, weights, vectors) == [kernel]
  add = lambda carry, gradient, old, live: (carry, old + gradient.astype(dtype))  # noqa: E731
  update = lambda values, *args: update_rows(*args, values, add, ())[1]  # noqa: E731
  assert kernels(update, values, ids, weights, vectors) == [kernel]


@pytest.mark.parametrize(("capability", "kernel"), [(90, [MOSAIC] * 2), (0, [])])
def test_default_of_the_op(chip, capability, kernel):
  """The bag and the gradient of its weights; the XLA form where the chip is not known."""
  chip(capability)
  values, ids, weights, _ = shapes(128, rows=1000 + capability)  # traces are kept by shape

  def both(values, ids, weights):
    y, pull = jax.vjp(lambda weights: embedding_bag(values, ids, weights), weights)
    return pull(y)

  assert kernels(both, values, ids, weights) == kernel


def test_what_it_cannot_do_is_refused(chip):
  values, ids, weights, vectors = inputs(1, 2, 8, "float32")
  with pytest.raises(NotImplementedError, match=r"8\.0 or newer; got unknown"):
    chip(0)
    embedding_bag(values, ids, weights, implementation="gpu")
  with pytest.raises(NotImplementedError, match=r"got a GPU, capability 7\.5"):
    chip(75)
    gpu.dot_bag(values, ids, vectors)
  with pytest.raises(NotImplementedError, match="float16; got float8_e5m2"):
    chip(90)
    gpu.embedding_bag(values.astype(jnp.float8_e5m2), ids, weights)


def test_benchmark_runs_and_says_what_it_lacks(capsys):
  assert gpu_sparse.main(["--tiny", "--repeats", "1"]) == 0
  printed = capsys.readouterr().out
  assert re.search(r"128  forward +memjax", printed) and re.search(r"128  backward +XLA", printed)
  assert gpu_sparse.main([]) == 2
  assert re.fullmatch("needs an NVIDIA GPU .* jax sees: cpu\n", capsys.readouterr().out)


def test_benchmark_notices_a_wrong_result(capsys, monkeypatch):
  wrong = lambda *args, **options: 1.01 * embedding_bag(*args, **options)  # noqa: E731
  monkeypatch.setattr(gpu_sparse, "embedding_bag", wrong)
  assert gpu_sparse.main(["--tiny", "--repeats", "1"]) == 1
  assert "WRONG" in capsys.readouterr().out
