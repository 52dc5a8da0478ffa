"""What devices exchange in a compiled program, and what they should."""

from memjax.testing.collectives import collectives
from memjax.testing.hlo import arrays as shapes

__all__ = ["expected", "found", "shapes"]


def found(compiled):
  """(kind, bytes that a device holds after it) of every collective, sorted."""
  return sorted((one.kind, one.held) for one in collectives(compiled.as_text()))


def expected(cut, *, tokens, slots, dim, table_rows):
  """Those of one `bag` in float32 and its gradients.

  Args:
    cut: a `TableSharding`, of which tokens are cut over all axes of the table, or none.
    tokens: on one device.   slots: b.   dim: dv.   table_rows: N.
  """
  group, rows, columns = cut.ways(cut.group), cut.ways(cut.rows), cut.ways(cut.columns)
  everyone = group * tokens * slots * 4
  width = dim // columns * 4
  made = []
  if cut.group:
    made += [("all-gather", everyone), ("all-gather", everyone)]  # ids, weights
    made += [("reduce-scatter", tokens * slots * 4)]  # dw
  if cut.rows and cut.group:  # sums of own rows; dy
    made += [("reduce-scatter", group // rows * tokens * width)]
    made += [("all-gather", group * tokens * width)]
  if cut.columns and cut.group:
    made += [("all-to-all", tokens * dim * 4)] * 2  # y; dy
  if cut.replicas:
    made += [("all-reduce", table_rows // rows * width)]  # dV
  return sorted(made)
