"""The laws on every row of the registry."""

import jax
import pytest
from flax import nnx

from memjax.testing import FAST, LAWS, report
from tests.registry import Row, public_memories, rows
from tests.testing.changed import changed

ROWS = rows()
OTHER = tuple(law for law in LAWS if law not in FAST)
# These rows get the other laws and the second Flax mode in every run.
SAMPLE = {"stack-attention", "language-model", "ntm-lstm", "product-keys-rms", "rmt"}
# Options of a memory that another row has as it comes: their laws are slow, unless they changed.
VARIANTS = {
  "dnc-no-link", "rmc-blocks", "lrua-key", "lm2-attention", "lm2-code", "memn2n-layerwise",
  "memnn-hashed", "kv-memnn-select", "memformer-gru", "conformer-ntm-content", "memo-vectors",
  "product-keys-batch", "product-keys-layer", "memory-plus-pool", "peer-batch", "ultramem-plain",
  "ultramem-v2-ring", "mlp-memory-gated", "rmt-around-memories", "rmt-causal-remat",
}  # fmt: skip


def run(row: Row, laws, record_property, share: float):
  """Runs laws on a row; refuses what breaks them or takes more CPU seconds than its share."""
  verdict = report(
    row.make, dim=row.dim, batch=row.batch, length=row.length, laws=laws, extras=row.extras,
    inputs=row.inputs, exempt=row.exempt, implementations=row.implementations, task=row.task,
    tolerance=row.tolerance,
  )  # fmt: skip
  record_property("laws", (row.name, round(verdict.seconds, 2)))
  if verdict.failed:
    pytest.fail(str(verdict), pytrace=False)
  assert verdict.seconds <= share, (
    f"{row.name} took {verdict.seconds:.1f} CPU seconds, its share is {share}: make its sizes "
    f"smaller ({', '.join(f'{r.law} {r.seconds:.1f}' for r in verdict.results)})"
  )


def by_name(found, fast):
  """The rows of which `fast` is true and those that changed in every run, others by `-m slow`."""
  marks = lambda row: () if fast(row) or changed(row) else pytest.mark.slow  # noqa: E731
  return [pytest.param(row, id=row.name, marks=marks(row)) for row in found]


def mostly_slow(found):
  """The sample in every run."""
  return by_name(found, lambda row: row.name in SAMPLE)


@pytest.mark.parametrize("row", by_name(ROWS, lambda row: row.name not in VARIANTS))
def test_laws(row, record_property):
  run(row, FAST, record_property, row.share)


@pytest.mark.parametrize("row", mostly_slow(ROWS))
def test_other_laws(row, record_property):
  run(row, OTHER, record_property, 3 * row.share)


@pytest.mark.parametrize("row", mostly_slow(ROWS))
def test_laws_in_tree_mode(row, record_property):
  with nnx.set_graph_mode(False):
    run(row, FAST, record_property, row.share)


def test_every_public_memory_has_a_row():
  made = {type(jax.eval_shape(lambda row=row: row.make(rngs=nnx.Rngs(0)))) for row in ROWS}
  missing = sorted(c.__qualname__ for c in public_memories() - made)
  assert not missing, f"add rows in tests/registry/ for {', '.join(missing)}"


def test_the_sample_and_the_variants_are_in_the_registry():
  assert SAMPLE | VARIANTS <= {row.name for row in ROWS} and not SAMPLE & VARIANTS


def test_every_memory_is_asked_in_every_run():
  made = [(row, type(jax.eval_shape(lambda row=row: row.make(rngs=nnx.Rngs(0))))) for row in ROWS]
  always = {kind for row, kind in made if row.name not in VARIANTS}
  assert always == {kind for _, kind in made}
