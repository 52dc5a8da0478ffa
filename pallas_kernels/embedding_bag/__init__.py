"""Weighted sums of rows of a table."""

from pallas_kernels.embedding_bag.op import embedding_bag

__all__ = ["embedding_bag"]
