"""Memories that live in parameters: tables and networks, written by gradient."""

from memjax.parametric.batch_norm import BatchNorm, apply_batch_stats
from memjax.parametric.memory_plus import MemoryPlus
from memjax.parametric.product_key_memory import ProductKeyMemory
from memjax.parametric.product_keys import ProductKeys, Values, value_pool

__all__ = [
  "BatchNorm",
  "MemoryPlus",
  "ProductKeyMemory",
  "ProductKeys",
  "Values",
  "apply_batch_stats",
  "value_pool",
]
