"""A CPU's kernels in C++ against numpy, and what happens where they cannot be built."""

import functools
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import native
from pallas_kernels.embedding_bag import cpu, dot_bag
from pallas_kernels.embedding_bag.reads import sort_reads

SOURCE = Path(cpu.__file__).with_suffix(".cc")
RATES = {"b1": 0.8, "b2": 0.9, "eps": 1e-3}
NUMBERS = {"factor": 0.5, "rate": 0.1, "scale": 1.3, "decay": 0.02}
# (tokens, bag, rows, dim): one read; a strip of columns and less, one and more, several; rows whose
# reads go over chunks, one row with all reads; more rows than reads.
CASES = [
  (1, 1, 3, 2), (9, 5, 20, 64), (8, 8, 7, 70), (16, 8, 30, 192), (160, 32, 5, 33), (90, 50, 1, 8),
  (6, 4, 900, 16),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _built():
  """Without a compiler there is nothing to test; one that fails is an error."""
  try:
    native._built(SOURCE)
  except NotImplementedError as error:
    pytest.skip(str(error))


@pytest.fixture
def _unbuilt(monkeypatch, tmp_path, _built):
  """As in a process that has not asked yet, with nothing kept."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  native._tried.cache_clear()
  yield
  native._tried.cache_clear()


def inputs(tokens, bag, rows, dim, seed=0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, rows + 1, (tokens, bag)).astype(np.int32)  # N is padding
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  held = draw(rows, dim), draw(rows, dim), np.abs(draw(rows, dim))
  return (ids, draw(tokens, bag), draw(tokens, dim)), held


def by_numpy(factors, held, rows):
  ids, weights, vectors = factors
  g = np.zeros((rows + 1, vectors.shape[1]))
  np.add.at(g, ids, weights[:, :, None] * vectors[:, None])
  touched = np.isin(np.arange(rows), ids)[:, None]
  g, (p, m, v) = g[:rows], held
  squares, x, k = np.sum(g * g), NUMBERS["factor"] * g, NUMBERS
  first = RATES["b1"] * m + (1 - RATES["b1"]) * x
  second = RATES["b2"] * v + (1 - RATES["b2"]) * x * x
  move = k["rate"] * first / (np.sqrt(k["scale"] * second) + RATES["eps"]) + k["decay"] * p
  new = zip((p - move, first, second), held, strict=True)
  return [np.where(touched, a, b) for a, b in new], squares, touched[:, 0]


@functools.partial(jax.jit, donate_argnums=1)
def step(factors, held):
  return cpu.adam(*factors, *held, jnp.asarray(list(NUMBERS.values())), **RATES)


@pytest.mark.parametrize("case", CASES)
def test_adam_is_its_equations(case):
  factors, held = inputs(*case)
  wanted, squares, touched = by_numpy(factors, held, case[2])
  *got, found = step(factors, tuple(map(jnp.asarray, held)))
  for a, b, old in zip(got, wanted, held, strict=True):
    # Sums of up to 5,000 float32 products in another order.
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(a[~touched], old[~touched])
  np.testing.assert_allclose(found, squares, rtol=1e-4)  # of the same sums


@pytest.mark.parametrize("case", CASES)
def test_inner_products(case):
  (ids, _, vectors), (values, *_) = inputs(*case)
  outside = np.where(np.arange(ids.size).reshape(ids.shape) % 7 == 3, -2, ids)
  rows = np.concatenate([values, np.zeros((1, case[3]), np.float32)])  # N and -2 are padding
  for one in (ids, outside):
    got = dot_bag(values, one, vectors, implementation="cpu")
    wanted = np.einsum("td,tbd->tb", vectors, rows[np.where(one < 0, case[2], one)])
    # Up to 192 float32 products of order one, added in lanes.
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_in_place_and_bit_for_bit_again():
  factors, held = inputs(160, 32, 500, 96)
  results = []
  for _ in range(3):
    arrays = tuple(map(jnp.array, held))
    places = [a.unsafe_buffer_pointer() for a in arrays]
    *new, squares = step(factors, arrays)
    assert [a.unsafe_buffer_pointer() for a in new] == places
    results.append(jax.tree.map(np.asarray, (new, squares)))
  for other in results[1:]:
    jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_an_array_that_is_still_needed_stays_as_it_was():
  factors, held = inputs(9, 5, 20, 64)
  arrays = tuple(map(jnp.array, held))
  run = jax.jit(lambda held: (cpu.adam(*factors, *held, jnp.ones(4), **RATES), held))
  (new, *_), old = run(arrays)
  np.testing.assert_array_equal(old[0], held[0])
  assert np.any(np.asarray(new) != held[0])


def test_reads_that_nobody_made_and_padding_alone_change_nothing():
  factors, held = inputs(4, 3, 6, 5)
  nothing = tuple(a[:0] for a in factors)
  padding = np.full_like(factors[0], 6), *factors[1:]
  for one in (nothing, padding):
    *got, squares = step(one, tuple(map(jnp.asarray, held)))
    jax.tree.map(np.testing.assert_array_equal, got, list(held))
    assert squares == 0


def test_several_at_once():
  """Under vmap, as runs of several seeds are."""
  factors, held = zip(*(inputs(9, 5, 20, 64, seed) for seed in (1, 2)), strict=True)
  both = jax.tree.map(lambda *a: jnp.stack(a), *zip(factors, held, strict=True))
  run = jax.jit(jax.vmap(lambda f, h: cpu.adam(*f, *h, jnp.ones(4), **RATES)))
  got = run(*both)
  for i in range(2):
    one = cpu.adam(*factors[i], *map(jnp.asarray, held[i]), jnp.ones(4), **RATES)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[i], b), got, one)  # noqa: B023


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_sorts_stably(data):
  largest = data.draw(st.sampled_from([0, 1, 5, 2047, 2048, 2**22, 2**31 - 1]))
  size = data.draw(st.sampled_from([1, 2, 7, 300]))
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  flat = rng.integers(0, largest, size, endpoint=True).astype(np.int32)
  row, order = jax.jit(cpu.sort, static_argnums=1)(flat, largest)
  wanted = np.argsort(flat, kind="stable")
  np.testing.assert_array_equal(order, wanted)
  np.testing.assert_array_equal(row, flat[wanted])


def test_shapes_that_do_not_fit_are_named():
  (ids, weights, vectors), held = inputs(4, 3, 6, 5)
  with pytest.raises(ValueError, match=r"\[T, dv\]; got \[\[4, 3\], \[4, 2\], \[4, 5\]\]"):
    step((ids, weights[:, :2], vectors), held)
  with pytest.raises(ValueError, match=r"\[N, 5\]; got \[\[6, 5\], \[6, 4\], \[6, 5\]\]"):
    step((ids, weights, vectors), (held[0], held[1][:, :4], held[2]))


def test_other_tables_are_refused():
  factors, held = inputs(4, 3, 6, 5)
  held = jnp.asarray(held[0], jnp.bfloat16), *held[1:]
  with pytest.raises(NotImplementedError, match="float32.*bfloat16"):
    step(factors, held)


@pytest.mark.parametrize(
  ("name", "value", "why"), [("MEMJAX_NATIVE", "0", "out"), ("PATH", "", "compiler")]
)
def test_without_it_reads_are_sorted_all_the_same(monkeypatch, _unbuilt, name, value, why):
  monkeypatch.delenv("CXX", raising=False)
  monkeypatch.setenv(name, value)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(NotImplementedError, match=why):
      cpu.sort(jnp.zeros(1, jnp.int32), 1)
    reads = sort_reads(jnp.array([[3, 1], [1, 7]]), 5)
  np.testing.assert_array_equal(reads.row, [1, 1, 3, 5])
  np.testing.assert_array_equal(reads.order, [1, 2, 0, 3])


FAILED = r"cpu\.cc could not be built and loaded.*\n.*MEMJAX_NATIVE=0"


@pytest.mark.parametrize("failure", [OSError("a home that runs nothing"), RuntimeError("no home")])
def test_a_library_that_cannot_be_loaded_is_named(monkeypatch, _unbuilt, failure):
  def refuse(*args):
    raise failure

  monkeypatch.setattr(native.ctypes, "CDLL", refuse)
  with pytest.warns(UserWarning, match=FAILED):
    reads = sort_reads(jnp.array([[3, 1]]), 5)
  np.testing.assert_array_equal(reads.row, [1, 3])


@pytest.mark.parametrize("compiler", ["false", "there-is-no-such-compiler"])
def test_a_compiler_that_fails_is_named_once(monkeypatch, _unbuilt, compiler):
  monkeypatch.setenv("CXX", compiler)
  with pytest.warns(UserWarning, match=FAILED):
    sort_reads(jnp.array([[3, 1]]), 5)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sort_reads(jnp.array([[3, 1]]), 5)


def test_builds_once(monkeypatch, tmp_path, _unbuilt):
  built = native._built(SOURCE)
  assert built.parent == tmp_path / "memjax"
  assert [path.name for path in built.parent.iterdir()] == [built.name]
  monkeypatch.setattr(native.subprocess, "run", None)  # what has been kept is taken
  assert native._built(SOURCE) == built
