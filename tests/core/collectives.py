"""What devices exchange in a compiled program, and what they should."""

import math
import re

KINDS = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|collective-broadcast"
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}


def shapes(text):
  """(dtype, sizes) of every array named in a piece of HLO."""
  return [
    (dtype, tuple(int(n) for n in sizes.split(",") if n))
    for dtype, sizes in re.findall(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]", text)
  ]


def size(array):
  """Bytes of (dtype, sizes)."""
  return BYTES[array[0]] * math.prod(array[1])


def found(compiled):
  """(kind, bytes that a device holds after it) of every collective, sorted."""
  lines = re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", compiled.as_text())
  return sorted((kind, sum(map(size, shapes(result)))) for result, kind in lines)


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
