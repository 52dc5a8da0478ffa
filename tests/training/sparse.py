"""Small language models that look tables up in every way there is, and their batches."""

import functools

import jax
import numpy as np
from flax import nnx

from memjax.core import Memory, Stateless, lookup
from memjax.core.layers import Linear
from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.transformer import LanguageModel, Stack

DIM, VOCAB, KEYS, LENGTH = 4, 7, 4, 4
SIZES = {"keys": KEYS, "heads": 2, "query_dim": 4}

own = functools.partial(ProductKeyMemory, top_k=2, **SIZES)
read = functools.partial(MemoryPlus, top_k=2, values="pool", **SIZES)
read_more = functools.partial(MemoryPlus, top_k=3, values="pool", **SIZES)
stack = functools.partial(Stack, pattern=[own], repeats=2)


class Neurons(Memory):
  """Two lookups of two tables: inner products with rows, then a weighted sum of rows."""

  def __init__(self, dim, *, rngs):
    self.route = Linear(dim, 3, axes=("embed", "rows"), rngs=rngs)
    self.down = value_pool(3 * KEYS, dim, rngs=rngs)
    self.up = value_pool(3 * KEYS, dim, rngs=rngs)

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    ids = jax.numpy.argsort(self.route(x), axis=-1) + 3
    hidden = jax.numpy.tanh(lookup.dots(self.down[...], ids, x, label="down"))
    return lookup.bag(self.up[...], ids, hidden, label="up"), state


def segments(body, remat=None):
  """An RMT whose memory tokens fill up two segments."""
  sizes = {"segment": LENGTH // 2, "memory": 1, "causal_memory": True}
  return functools.partial(RecurrentMemoryTransformer, body=body, remat=remat, **sizes)


BODIES = {
  "one layer": functools.partial(Stack, pattern=[own]),
  "two tables a layer": functools.partial(Stack, pattern=[Neurons], repeats=2),
  "layers share a pool": functools.partial(
    Stack, pattern=[read], repeats=3, exceptions={2: [read_more]}
  ),
  "a scan over layers": stack,
  "layers in segments": segments(stack),
  "segments in layers": functools.partial(Stack, pattern=[segments(stack)], repeats=2),
  "rematerialised": segments(functools.partial(stack, remat="full"), remat="full"),
}


@functools.cache
def language_model(body: str = "a scan over layers") -> LanguageModel:
  pool = {"pool": functools.partial(value_pool, KEYS**2, DIM)} if "pool" in body else {}

  def make():
    return LanguageModel(VOCAB, DIM, body=BODIES[body], shared=pool, rngs=nnx.Rngs(0))

  return jax.jit(make)()


def batch(number: int = 0, rows: int = 2) -> dict:
  """Ids, and an odd number of tokens that do not count."""
  rng = np.random.default_rng(number)
  inputs, targets = rng.integers(0, VOCAB, (2, rows, LENGTH)).astype(np.int32)
  valid = np.ones((rows, LENGTH), bool)
  valid[0, -1] = False
  return {"inputs": inputs, "targets": targets, "valid": valid}
