"""Weighted sums of rows of a table, inner products with rows, and gradients of the rows touched."""

from pallas_kernels.embedding_bag.op import dot_bag, embedding_bag, table_gradient
from pallas_kernels.embedding_bag.rows import TouchedRows, touched_rows, update_rows

__all__ = [
  "TouchedRows",
  "dot_bag",
  "embedding_bag",
  "table_gradient",
  "touched_rows",
  "update_rows",
]
