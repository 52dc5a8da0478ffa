"""Exact search among the n * n sums of two lists of n scores."""

from pallas_kernels.product_key_topk.op import product_key_topk

__all__ = ["product_key_topk"]
