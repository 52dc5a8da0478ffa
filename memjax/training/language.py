"""The loss of a `LanguageModel` over batches of `memjax.data`."""

import jax.numpy as jnp

from memjax.core import Context, channel, checks, detach, replace, submodules
from memjax.core import sequence_sharding as sequence
from memjax.training.losses import chunked_next_token_loss, next_token_loss
from memjax.training.step import LossFn, LossOutput


def language_model_loss(*, carry: bool = False, chunk: int | None = None) -> LossFn:
  """The loss function `(model, memory, batch, key) -> LossOutput` of a `LanguageModel`.

  A batch is a dict of `inputs [B, T]` and `targets [B, T]` int32, and where there are any `reset`,
  `valid` `[B, T]` bool, and `positions [B, T]` int32, which the model gets as
  `context.tokens["positions"]`. `total` is the cross-entropy in nats plus, for every token, each
  auxiliary loss: what the model emits under a name that ends in "loss", summed over layers and
  segments. `metrics["nats"]` is the cross-entropy alone. With a key there is dropout, batch norms
  use the batch, and their statistics come back; without one nothing of it. Where time is cut over
  devices and the model works in segments, the batch is put in the order that this asks for.

  Args:
    carry: the memory state goes on from batch to batch, without gradient (`detach`); otherwise
      every row starts with `init_state`, and `memory` is passed on untouched.
    chunk: tokens of a row whose logits are made at a time, so that `[B, T, vocab]` never is; they
      are made again for the gradient. None: all.
  """
  if chunk is not None:
    checks.positive(chunk=chunk)

  def loss_fn(model, memory, batch, key):
    training = key is not None
    if training and _has_batch_norm(model):
      model = replace(model, use_batch=True)
    cut = getattr(model, "sequence_sharding", None)
    if cut is not None and model.granularity > 1:
      batch = sequence.arrange(batch, model.granularity, cut)
    ids, reset, valid = batch["inputs"], batch.get("reset"), batch.get("valid")
    state = detach(memory) if carry else model.init_state(ids.shape[0])
    tokens = {"positions": batch["positions"]} if "positions" in batch else {}
    context = Context(key=key, tokens=tokens) if training or tokens else None
    with channel.collect() as frame:
      call = model if chunk is None else model.features
      out, state = call(ids, state, reset=reset, valid=valid, context=context)
    if chunk is None:
      nats, count = next_token_loss(out, batch["targets"], valid)
    else:
      nats, count = chunked_next_token_loss(
        model.logits, out, batch["targets"], valid, chunk=chunk, sharding=cut
      )
    losses = [
      jnp.sum(value) for name, value in frame.emitted.items() if _plain(name).endswith("loss")
    ]
    auxiliary = sum(losses, jnp.float32(0))
    metrics = {"nats": nats / jnp.maximum(count, 1)}
    if losses:
      metrics["auxiliary_loss"] = auxiliary
    stats = {name: value for name, value in frame.emitted.items() if _plain(name) == "batch_stats"}
    return LossOutput(nats + count * auxiliary, count, state if carry else memory, metrics, stats)

  return loss_fn


def _plain(name: str) -> str:
  """The name a memory emitted under, without scopes and count: `0+2x4/a.1` -> `a`."""
  return name.rpartition("/")[2].partition(".")[0]


def _has_batch_norm(model) -> bool:
  return any("use_batch" in vars(module) for module in submodules(model))
