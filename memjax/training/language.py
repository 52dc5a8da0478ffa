"""The loss of a `LanguageModel` over batches of `memjax.data`."""

import jax
import jax.numpy as jnp

from memjax.core import Context, channel, checks, detach, replace, submodules
from memjax.core import sequence_sharding as sequence
from memjax.core.replay import Replay, replay_scan
from memjax.training.losses import chunked_next_token_loss, next_token_loss
from memjax.training.step import LossFn, LossOutput

STATES_ONLY = Replay()


def language_model_loss(
  *, carry: bool = False, chunk: int | None = None, segment: int | None = None,
  replay: Replay | None = STATES_ONLY,
) -> LossFn:  # fmt: skip
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
    segment: tokens of a row that go through the model and the loss together, its state carried from
      one segment to the next; gradients are those of all tokens. With a model that carries its
      state exactly, the same loss, and of a row's length only the ids and the states between
      segments are kept. None: all tokens in one call.
    replay: what back-propagation keeps of the segments; None: everything.

  Raises (the function returned):
    ValueError: segment does not divide T; or time is cut otherwise than into the model's segments.
  """
  given = {"chunk": chunk, "segment": segment}
  checks.positive(**{name: value for name, value in given.items() if value is not None})

  def loss_fn(model, memory, batch, key):
    training = key is not None
    if training and _has_batch_norm(model):
      model = replace(model, use_batch=True)
    cut = getattr(model, "sequence_sharding", None)
    if cut is not None and model.granularity > 1:
      batch = sequence.arrange(batch, model.granularity, cut)
    state = detach(memory) if carry else model.init_state(batch["inputs"].shape[0])

    def one_call(state, batch, key):
      valid, tokens = batch.get("valid"), {}
      if "positions" in batch:
        tokens = {"positions": batch["positions"]}
      context = Context(key=key, tokens=tokens) if training or tokens else None
      call = model if chunk is None else model.features
      out, state = call(
        batch["inputs"], state, reset=batch.get("reset"), valid=valid, context=context
      )
      if chunk is None:
        return state, next_token_loss(out, batch["targets"], valid)
      return state, chunked_next_token_loss(
        model.logits, out, batch["targets"], valid, chunk=chunk, sharding=cut
      )

    with channel.collect() as frame:
      if segment is None:
        state, (nats, count) = one_call(state, batch, key)
      else:
        parts = _segments(batch, segment, model.granularity, cut)
        keys = jax.random.split(key, parts["inputs"].shape[0]) if training else None
        step = lambda state, part: one_call(state, *part)  # noqa: E731
        state, sums = replay_scan(step, state, (parts, keys), replay)
        nats, count = jax.tree.map(jnp.sum, sums)
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


def _segments(batch, segment: int, granularity: int, cut):
  """Arrays `[B, T]` as `[T / segment, B, segment]`."""
  length = batch["inputs"].shape[1]
  if length % segment:
    raise ValueError(f"segment={segment} does not divide the T={length} tokens of a row")
  if cut is not None and cut.time and segment != granularity:
    raise ValueError(
      f"segment={segment}: where time is cut over devices, it must be the model's own segments, of "
      f"{granularity} tokens"
    )
  return jax.tree.map(lambda a: jnp.moveaxis(sequence.fold(a, segment, cut), 1, 0), batch)


def _plain(name: str) -> str:
  """The name a memory emitted under, without scopes and count: `0+2x4/a.1` -> `a`."""
  return name.rpartition("/")[2].partition(".")[0]


def _has_batch_norm(model) -> bool:
  return any("use_batch" in vars(module) for module in submodules(model))
