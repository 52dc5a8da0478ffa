"""Memories that live in parameters: tables and networks, written by gradient."""

from memjax.parametric.batch_norm import BatchNorm, apply_batch_stats
from memjax.parametric.knn import base_states, knn_search, knn_teacher
from memjax.parametric.memory_plus import MemoryPlus
from memjax.parametric.mlp_memory import MLPMemory, interpolate, mlp_memory_loss
from memjax.parametric.peer import PEER
from memjax.parametric.product_key_memory import ProductKeyMemory
from memjax.parametric.product_keys import ProductKeys, Values, value_pool
from memjax.parametric.tucker_keys import TuckerKeys, refresh_singular_vectors
from memjax.parametric.ultramem import UltraMem
from memjax.parametric.ultramem_v2 import UltraMemV2, ring
from memjax.parametric.usage import Usage, count_usage, emitted_usage, no_usage, usage_metrics

__all__ = [
  "PEER",
  "BatchNorm",
  "MLPMemory",
  "MemoryPlus",
  "ProductKeyMemory",
  "ProductKeys",
  "TuckerKeys",
  "UltraMem",
  "UltraMemV2",
  "Usage",
  "Values",
  "apply_batch_stats",
  "base_states",
  "count_usage",
  "emitted_usage",
  "interpolate",
  "knn_search",
  "knn_teacher",
  "mlp_memory_loss",
  "no_usage",
  "refresh_singular_vectors",
  "ring",
  "usage_metrics",
  "value_pool",
]
