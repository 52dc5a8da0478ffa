"""The loss of a text run's model on held-out text, and what it owes to its block memories."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from experiments import meshes, runs
from memjax import training
from memjax.training.losses import next_token_loss
from memjax.training.step import LossFn, LossOutput
from memjax.transformer import Attention, LanguageModel, Stack, with_room

RESET = "nats_memory_reset"  # what the loss is called among metrics


def block_memories(model: LanguageModel) -> list[str]:
  """The layers, by their key in the `Stack`, that are not attention and have a state."""
  if not isinstance(model.body, Stack):
    return []
  state = jax.eval_shape(lambda: model.init_state(1))
  return [
    name
    for name, layer in model.body.layers.items()
    if not isinstance(layer.memory, Attention) and jax.tree.leaves(state.layers[name])
  ]


def forgetting_loss(segment: int) -> LossFn:
  """As `training.language_model_loss()`, for evaluation, with every block memory back at its first
  state before each `segment` tokens of a row. Attention keeps what it has seen of the row.

  Raises (the function returned):
    ValueError: segment does not divide T, or is no multiple of the model's granularity.
  """

  def loss_fn(model, memory, batch, key):
    rows, length = batch["inputs"].shape
    if length % segment or segment % model.granularity:
      raise ValueError(
        f"segment={segment} must divide the T={length} tokens of a row, and be a multiple of the "
        f"model's granularity {model.granularity}"
      )
    model = with_room(model, length)
    first, names = model.init_state(rows), block_memories(model)

    def step(state, part):
      layers = {name: _forget(state.layers[name], first.layers[name]) for name in names}
      state = dataclasses.replace(state, layers={**state.layers, **layers})
      logits, state = model(part["inputs"], state, reset=part["reset"], valid=part["valid"])
      return state, next_token_loss(logits, part["targets"], part["valid"])

    cut = lambda a: jnp.moveaxis(a.reshape(rows, -1, segment), 1, 0)  # noqa: E731
    _, sums = jax.lax.scan(step, first, jax.tree.map(cut, batch))
    nats, count = jax.tree.map(jnp.sum, sums)
    return LossOutput(nats, count, memory, {"nats": nats / jnp.maximum(count, 1)}, {})

  return loss_fn


def _forget(state, first):
  """The first state; attention that the memory has taken in goes on."""
  if not hasattr(state, "attention"):
    return first
  return dataclasses.replace(first, attention=state.attention)


class HeldOut:
  """The loss on held-out text; of a model with block memories also the loss with these reset
  before every `config.model.memory_segment` tokens.

  Raises:
    ValueError: these do not divide a row.
  """

  def __init__(self, config, corpus, model, split: str = "validation"):
    rows, segment = runs.rows(config, model), config.model.memory_segment
    self.batches = functools.partial(corpus.evaluation_batches, split=split, **rows)
    self.place = meshes.placing(config)
    loss_fn = training.language_model_loss(chunk=config.loss_chunk)
    self.steps = {"": training.make_eval_step(loss_fn)}
    cut = getattr(model, "sequence_sharding", None)  # time cut over devices goes in one call
    if block_memories(model) and not (cut is not None and cut.time):
      if config.sequence_length % segment:
        raise ValueError(
          f"config.model.memory_segment={segment} must divide "
          f"config.sequence_length={config.sequence_length}"
        )
      self.steps[RESET] = training.make_eval_step(forgetting_loss(segment))

  def __call__(self, state, tokens: int) -> dict[str, float]:
    """Means over the first so many tokens: `loss`, `nats`, and `RESET` in nats."""
    found = {
      name: training.evaluate(step, state, self.batches(max_tokens=tokens), place=self.place)
      for name, step in self.steps.items()
    }
    return found.pop("") | {name: means["nats"] for name, means in found.items()}
