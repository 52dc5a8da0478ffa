"""The mean loss over an evaluation set, every token counted once."""

from collections.abc import Callable, Iterable

import jax

from memjax.core.module import join
from memjax.training.step import LossFn, TrainState


def make_eval_step(loss_fn: LossFn) -> Callable:
  """The jitted `(state, memory, batch) -> (memory, sums)` of a loss function without a key.

  Sums: `count`, `loss`, and each metric times the count.
  """

  @jax.jit
  def eval_step(params, rest, memory, batch):
    out = loss_fn(join(params, rest), memory, batch, None)
    sums = {name: value * out.count for name, value in out.metrics.items()}
    return out.memory, {**sums, "loss": out.total, "count": out.count}

  return lambda state, memory, batch: eval_step(state.params, state.rest, memory, batch)


def evaluate(
  eval_step: Callable,
  state: TrainState,
  batches: Iterable,
  *,
  carry: bool = False,
  place: Callable | None = None,
) -> dict:
  """Means over all tokens of `batches`; the device is waited for once, at the end.

  Args:
    eval_step: as from `make_eval_step`.
    state: whose parameters are evaluated.
    batches: finite; with carry all of one batch size B, else of any.
    carry: a memory state goes through the batches, starting with `init_state(B)`.
    place: `batch -> batch` on the device.

  Returns:
    `{"loss": nats per token, ..., "count": number of tokens}`, Python floats.

  Raises:
    ValueError: there was no token.
  """
  memory, sums = state.memory, []
  for batch in batches:
    batch = jax.device_put(batch) if place is None else place(batch)
    if carry and not sums:
      memory = state.model.init_state(jax.tree.leaves(batch)[0].shape[0])
    memory, out = eval_step(state, memory, batch)
    sums.append(out)
  sums = jax.device_get(sums)
  count = sum(float(out["count"]) for out in sums)
  if not count:
    raise ValueError("the evaluation batches hold no token that counts")
  return {
    name: sum(float(out[name]) for out in sums) / count for name in sums[0] if name != "count"
  } | {"count": count}
