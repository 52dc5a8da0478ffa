"""Rows of `memjax.parametric`."""

import functools

import jax

from memjax.core import Context
from memjax.core.layers import RMSNorm
from memjax.parametric import PEER, MemoryPlus, MLPMemory, ProductKeyMemory, UltraMem, UltraMemV2
from memjax.transformer import Attention, FeedForward, Skip
from tests.registry import Row

SIZES = {"keys": 4, "heads": 2, "top_k": 3, "query_dim": 8}
OPS = {
  "implementations": ("reference", "chunk"),
  "sources": (
    "pallas_kernels/product_key_topk/chunk.py",
    "pallas_kernels/product_key_topk/op.py",
    "pallas_kernels/embedding_bag/chunk.py",
    "pallas_kernels/embedding_bag/op.py",
  ),
}
ULTRA = {"keys": 2, "heads": 2, "top_k": 2, "query_dim": 4}
BAG = {"implementations": ("reference", "chunk"), "sources": OPS["sources"][2:]}


def _pool(batch, length):
  return Context(shared={"values": jax.random.normal(jax.random.key(7), (16, 2))})


def _pair(rngs):
  """UltraMem read before the feed-forward layer of one block and added after the next."""
  attention = functools.partial(Attention, heads=2, capacity=32)
  return Skip(
    4,
    layers=(attention, functools.partial(FeedForward, hidden=8), attention),
    memory=functools.partial(UltraMem, value_dim=4, **ULTRA),
    at=1,
    rngs=rngs,
  )


LLAMA = {"activation": "silu", "gated": True, "bias": False, "norm": RMSNorm}

ROWS: list[Row] = [
  Row("product-keys-rms", functools.partial(ProductKeyMemory, 4, **SIZES), dim=4, **OPS),
  Row(
    "product-keys-layer",
    functools.partial(ProductKeyMemory, 4, query_norm="layer", value_dim=2, **SIZES),
    dim=4,
    **OPS,
  ),
  # With running statistics; with use_batch=True rows depend on each other, as they should.
  Row(
    "product-keys-batch",
    functools.partial(ProductKeyMemory, 4, query_norm="batch", **SIZES),
    dim=4,
    **OPS,
  ),
  Row("memory-plus", functools.partial(MemoryPlus, 4, **SIZES), dim=4, **OPS),
  Row(
    "memory-plus-pool",
    functools.partial(MemoryPlus, 4, values="values", value_dim=2, qk_norm=True, **SIZES),
    dim=4,
    extras=_pool,
    **OPS,
  ),
  Row("peer-batch", functools.partial(PEER, 4, **SIZES), dim=4, **OPS),
  Row(
    "peer-sigmoid",
    functools.partial(PEER, 4, query_norm="rms", gate="sigmoid", activation="silu", **SIZES),
    dim=4,
    **OPS,
  ),
  Row("ultramem", functools.partial(UltraMem, 4, value_dim=4, **ULTRA), dim=4, **BAG),
  Row(
    "ultramem-plain",
    functools.partial(UltraMem, 4, rank=1, channels=1, expansion=1, penalty=0.1, **ULTRA),
    dim=4,
    **BAG,
  ),
  Row(
    "ultramem-v2",
    functools.partial(UltraMemV2, 4, value_dim=4, pre_dim=3, balance=0.1, **ULTRA),
    dim=4,
    **BAG,
  ),
  Row(
    "ultramem-v2-ring",
    functools.partial(
      UltraMemV2,
      4,
      layers=2,
      layer=1,
      values="values",
      value_dim=4,
      pre_dim=0,
      expansion=4,
      query_per_rank=True,
      **ULTRA,
    ),
    dim=4,
    extras=_pool,
    **BAG,
  ),
  Row("skip-ultramem", _pair, dim=4, **BAG),
  Row("mlp-memory", functools.partial(MLPMemory, 4, layers=2, vocab=6, hidden=8), dim=4),
  Row(
    "mlp-memory-gated",
    functools.partial(MLPMemory, 4, layers=1, vocab=6, hidden=8, **LLAMA),
    dim=4,
  ),
]
