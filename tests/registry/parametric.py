"""Rows of `memjax.parametric`."""

import functools

import jax

from memjax.core import Context
from memjax.parametric import MemoryPlus, ProductKeyMemory
from tests.registry import Row

SIZES = {"keys": 5, "heads": 2, "top_k": 3, "query_dim": 4}
IMPLEMENTATIONS = ("reference", "chunk")
SOURCES = (
  "memjax/parametric/product_keys.py",
  "memjax/parametric/batch_norm.py",
  "pallas_kernels/product_key_topk/chunk.py",
  "pallas_kernels/embedding_bag/chunk.py",
)


def _pool(batch, length):
  return Context(shared={"values": jax.random.normal(jax.random.key(7), (25, 4))})


def _row(name, make, **settings):
  make = functools.partial(make, 6, **SIZES)
  settings = {"implementations": IMPLEMENTATIONS, "sources": SOURCES, **settings}
  return Row(name, lambda rngs: make(rngs=rngs), dim=6, **settings)


ROWS: list[Row] = [
  _row("product-keys-rms", ProductKeyMemory),
  _row("product-keys-layer", functools.partial(ProductKeyMemory, query_norm="layer", value_dim=4)),
  # Laws hold with running statistics; with use_batch=True rows depend on each other, by design.
  _row("product-keys-batch", functools.partial(ProductKeyMemory, query_norm="batch")),
  _row("memory-plus", MemoryPlus),
  _row(
    "memory-plus-pool",
    functools.partial(MemoryPlus, values="values", value_dim=4, qk_norm=True),
    extras=_pool,
  ),
]
