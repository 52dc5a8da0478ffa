"""Rows of `memjax.recurrent`."""

import functools

import jax

from memjax.parametric import ProductKeyMemory
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.slots import NeuralTuringMachine
from memjax.transformer import Attention, LanguageModel, Stack
from tests.registry import Row

_attention = functools.partial(Attention, heads=1, span="span", capacity=4)


def _rmt(**options):
  options = {"body": _attention, "segment": 2, "memory": 1, **options}
  return functools.partial(RecurrentMemoryTransformer, **options)


def _memories(rngs):
  slots = functools.partial(NeuralTuringMachine, slots=3, width=2, controller="mlp", hidden=4)
  keys = functools.partial(ProductKeyMemory, keys=3, heads=1, top_k=2, query_dim=2)
  return _rmt(body=functools.partial(Stack, pattern=(_attention, slots, keys)))(4, rngs=rngs)


ROWS: list[Row] = [
  Row("rmt", lambda rngs: _rmt()(4, rngs=rngs), dim=4),
  Row(
    "rmt-causal-remat",
    lambda rngs: _rmt(
      body=functools.partial(Attention, heads=1, capacity=4), causal_memory=True, remat="full"
    )(4, rngs=rngs),
    dim=4,
  ),
  Row(
    "rmt-around-memories",
    _memories,
    dim=4,
    exempt={
      "sharding:state": "the product keys' values are cut over their width, and what the RMT "
      "carries is made of them: give jit the state's shardings as out_shardings"
    },
  ),
  Row(
    "rmt-language-model",
    lambda rngs: LanguageModel(
      11, 4, body=_rmt(body=functools.partial(Stack, pattern=(_attention,), repeats=2)), rngs=rngs
    ),
    dim=4,
    inputs=lambda key, batch, length: jax.random.randint(key, (batch, length), 0, 11),
  ),
]
