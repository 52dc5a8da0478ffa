"""The SparseCore kernels without one: compiled for chips that have it, and their bodies simulated.

Pallas cannot interpret a vector subcore. So the bodies run in the simulator of the TensorCore's
memories, copies and semaphores; `Simulated` replaces what only a subcore has: an indirect gather by
a copy for each row, the loop over lanes by an ordinary one, words that hold two rows by words made
beforehand.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import compat
from pallas_kernels.embedding_bag import dot_bag, embedding_bag, reference, sparsecore
from pallas_kernels.embedding_bag.subcores import Cores
from tests.pallas_kernels import aot

ROWS = 10


class _Rows:
  """A copy for each row of a gather, on one semaphore."""

  def __init__(self, table, rows, columns, to, done):
    self.copies = [
      pltpu.make_async_copy(table.at[rows[i], columns], to.at[i], done) for i in range(to.shape[0])
    ]

  def start(self):
    for copy in self.copies:
      copy.start()

  def wait(self):
    for copy in self.copies:
      copy.wait()


@dataclasses.dataclass(frozen=True)
class Simulated(Cores):
  interpret: Any = True  # the plain interpreter, which is fast; or parameters of the simulator

  def words(self, table):
    if table.dtype != jnp.bfloat16:
      return table
    low, high = (table[i::2].view(jnp.uint16).astype(jnp.uint32) for i in range(2))
    return (low | high << 16).view(jnp.int32)

  def launch(self, body, out, scratch, cost, *arrays):
    def kernel(*refs):
      body(pl.program_id(0), *refs)

    somewhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
      kernel, grid=(self.cores * self.subcores,), out_shape=out, scratch_shapes=scratch,
      in_specs=[somewhere] * len(arrays), out_specs=somewhere,
      interpret=self.interpret,
    )(*arrays)  # fmt: skip

  def gather(self, table, rows, columns, to, done):
    return _Rows(table, rows, columns, to, done)

  def loop(self, columns, body, carry):
    step = lambda i, carry: body(i * self.lanes, carry)  # noqa: E731
    return jax.lax.fori_loop(0, columns // self.lanes, step, carry)


def inputs(tokens, bag, columns, dtype=jnp.float32):
  """values, ids (some of them padding, and others that are no ids), weights, vectors."""
  rng = np.random.default_rng(tokens)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  ids = jnp.asarray(rng.integers(-1, ROWS + 2, (tokens, bag)), jnp.int32)
  return normal(ROWS, columns).astype(dtype), ids, normal(tokens, bag), normal(tokens, columns)


# Two subcores: one has a block more to do than the other, or all there is. Two parts of columns
# where only 128 are taken at once. Gathers of 8 and of 16, with padding in the last of a bag.
SHAPES = [
  (19, 8, 128, jnp.float32, 8),
  (3, 21, 256, jnp.bfloat16, 8),
  (3, 9, 128, jnp.float32, 16),
]


@pytest.mark.parametrize(("tokens", "bag", "columns", "dtype", "lanes"), SHAPES)
def test_equals_the_definition(monkeypatch, tokens, bag, columns, dtype, lanes):
  monkeypatch.setattr(sparsecore, "COLUMNS", 128)
  on = Simulated(1, 2, lanes)
  values, ids, weights, vectors = inputs(tokens, bag, columns, dtype)
  got = jax.jit(lambda *args: sparsecore.run_bag(on, *args))(values, ids, weights)
  want = reference.embedding_bag(values, ids, weights)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  got = jax.jit(lambda *args: sparsecore.run_dots(on, *args))(values, ids, vectors)
  want = reference.dot_bag(values, ids, vectors)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("slots", "sound"), [(2, True), (1, False)])
def test_a_gather_never_overwrites_rows_in_use(monkeypatch, slots, sound):
  """And would be seen to if the ring had a single slot: copies are made as soon as they start."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call

  monkeypatch.setattr(sparsecore, "TOKENS", 2)
  monkeypatch.setattr(sparsecore, "SLOTS", slots)
  simulator = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")
  values, ids, weights, _ = inputs(2, 8, 128)
  on = Simulated(1, 1, 8, simulator)
  got = jax.jit(lambda *args: sparsecore.run_bag(on, *args))(values, ids, weights)
  equal = np.allclose(got, reference.embedding_bag(values, ids, weights), atol=1e-5)
  assert (equal and not interpret_pallas_call.races.races_found) == sound


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
def test_empty(shape):
  tokens, bag, rows = shape
  on = Cores(1, 2, 8)
  values, ids = jnp.zeros((rows, 128)), jnp.zeros((tokens, bag), int)
  assert sparsecore.run_bag(on, values, ids, jnp.ones((tokens, bag))).shape == (tokens, 128)
  assert sparsecore.run_dots(on, values, ids, jnp.ones((tokens, 128))).shape == (tokens, bag)


@aot.requires_libtpu
@aot.sparse_core_chips
@pytest.mark.parametrize(
  ("rows", "columns", "dtype"),
  [(2**18, 512, jnp.float32), (2**18, 512, jnp.bfloat16), (2**20, 2048, jnp.bfloat16)],
)
def test_compiled_ahead_of_time(chip, rows, columns, dtype):
  """No temporary is near the table's size: it is read where it lies."""
  table = jax.ShapeDtypeStruct((rows, columns), dtype)
  ids = jax.ShapeDtypeStruct((64, 128), jnp.int32)
  weights = jax.ShapeDtypeStruct((64, 128), jnp.float32)

  def both(values, ids, weights):
    bag = lambda weights: embedding_bag(values, ids, weights, implementation="sparsecore")  # noqa: E731
    y, pull = jax.vjp(bag, weights)
    return pull(y)

  lowered = aot.lower(chip, both, table, ids, weights)
  assert aot.kernels(lowered) == 2
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temporary < 4 * 2**20 < table.size * table.dtype.itemsize / 30


@aot.requires_libtpu
@aot.sparse_core_chips
def test_the_chip_is_known_where_programs_are_traced(chip):
  found = []
  aot.lower(
    chip, lambda x: (found.append(compat.chip()), x)[1], jax.ShapeDtypeStruct((), jnp.float32)
  )
  with jax.set_mesh(aot.mesh(chip)):
    assert found == [compat.chip()] and found[0].sparse_cores


def test_what_it_cannot_do_is_refused():
  values, ids, weights, vectors = inputs(2, 3, 128)
  with pytest.raises(NotImplementedError, match="need a TPU that has one; got cpu"):
    embedding_bag(values, ids, weights, implementation="sparsecore")
  with pytest.raises(NotImplementedError, match="need a TPU that has one; got cpu"):
    dot_bag(values, ids, vectors, implementation="sparsecore")
  on = Cores(1, 2, 8)
  with pytest.raises(NotImplementedError, match=r"multiple of 128 columns; got \[10, 100\]"):
    sparsecore.run_bag(on, values[:, :100], ids, weights)
  with pytest.raises(NotImplementedError, match=r"of 2 rows in bfloat16; got \[9, 128\]"):
    sparsecore.run_bag(on, values[:9].astype(jnp.bfloat16), ids, weights)
  with pytest.raises(NotImplementedError, match="float32 and bfloat16 tables; got float16"):
    sparsecore.run_bag(on, values.astype(jnp.float16), ids, weights)
  table = jax.ShapeDtypeStruct((2**22, 2048), jnp.float32)
  with pytest.raises(NotImplementedError, match=r"16 GiB; values \[4194304, 2048\] has more"):
    jax.eval_shape(lambda values: sparsecore.run_bag(on, values, ids, weights), table)


def test_a_subcore_has_the_memory():
  """The ring, a block of vectors and the reads of a block, in 256 KiB: the least there is."""
  on = Cores(2, 16, 8)
  values = jax.ShapeDtypeStruct((100, 8192), jnp.bfloat16)
  plan = sparsecore._plan(on, values, jax.ShapeDtypeStruct((8, 512), jnp.int32))
  assert plan.each == sparsecore.COLUMNS and plan.packed
  buffers = sparsecore._scratch(plan)[:-1]
  assert sum(4 * np.prod(buffer.shape) for buffer in buffers) < 220 * 2**10
