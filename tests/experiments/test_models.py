"""Memories of recipes stand where these say: in place of a feed-forward, or around attention."""

from typing import Any

import jax
import pytest

from experiments import models
from experiments.configs import text
from memjax.slots import LM2, RelationalMemory
from memjax.transformer import Attention, FeedForward

KINDS = {"rmc": (Attention, RelationalMemory), "lm2": (LM2, FeedForward)}


@pytest.mark.parametrize("name", KINDS)
def test_a_slot_memory_of_a_recipe(name):
  recipe: Any = text.get_config().model
  recipe.dim, recipe.layers, recipe.memory_layers = 32, 3, (1,)
  model: Any = jax.eval_shape(lambda: models.build(recipe, 11, memory=name, seed=0))
  kinds = {key: type(layer.memory) for key, layer in model.body.layers.items()}
  assert (kinds["2"], kinds["3"]) == KINDS[name]
  others = [kind for key, kind in kinds.items() if key not in ("2", "3")]
  assert set(others) == {Attention, FeedForward}
  memory = model.body.layers["2" if name == "lm2" else "3"].memory
  assert memory.slots == recipe.memory_slots
  if name == "lm2":
    assert isinstance(memory.attention, Attention)
    assert model.granularity == recipe.memory_segment
