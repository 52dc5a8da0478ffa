"""Memories of recipes stand where these say: in place of a feed-forward, or around attention."""

from typing import Any

import jax
import pytest

from experiments import models, runs
from experiments.configs import text
from memjax.slots import ELMUR, LM2, PMI, ConformerNTM, RelationalMemory
from memjax.transformer import Attention, FeedForward

KINDS = {
  "rmc": (Attention, RelationalMemory),
  "lm2": (LM2, FeedForward),
  "elmur": (ELMUR,),
  "pmi": (PMI, FeedForward),
  "conformer_ntm": (Attention, FeedForward, ConformerNTM),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_slot_memory_of_a_recipe(name):
  recipe: Any = text.get_config().model
  recipe.dim, recipe.layers, recipe.memory_layers = 32, 3, (1,)
  model: Any = jax.eval_shape(lambda: models.build(recipe, 11, memory=name, seed=0))
  kinds = {key: type(layer.memory) for key, layer in model.body.layers.items()}
  block, usual = KINDS[name], (Attention, FeedForward)
  assert tuple(kinds.values()) == (*usual, *block, *usual)
  [memory] = [
    layer.memory for layer in model.body.layers.values() if type(layer.memory) not in usual
  ]
  assert (memory.step if name == "pmi" else memory).slots == recipe.memory_slots
  assert model.granularity == (recipe.memory_segment if name in ("lm2", "elmur", "pmi") else 1)
  aligned = runs.rows(text.get_config(), model).get("align", 1)
  assert aligned == model.granularity  # documents begin at its segments' borders
  if name == "lm2":
    assert isinstance(memory.attention, Attention)
