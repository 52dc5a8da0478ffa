"""How fast a training is, and how much of the chips that takes."""

import jax

from experiments import models
from experiments.chips import chip_count, peak_flops

TRAINING = 3  # forward, and twice that for the gradients of inputs and of parameters


class Speed:
  """Tokens per second, by chip, and model-FLOPs utilisation.

  `mfu = 3 x forward FLOPs per token x tokens per second / peak bfloat16 FLOP/s of all chips`. The
  forward FLOPs are counted on the model itself (`experiments.flops`): matrix products exactly, the
  whole square of attention, other arithmetic once an element, lookups what they multiply. What is
  computed twice to save memory counts once. None on devices of unknown peak, such as a CPU.

  Args:
    tokens: of a step, on all devices together.
    flops_per_token: of the forward pass.
    devices: those that compute; None: all.
  """

  def __init__(self, tokens: int, flops_per_token: float, devices=None):
    self.tokens, self.flops_per_token = tokens, flops_per_token
    self.chips, self.peak = chip_count(devices), peak_flops(devices)

  @classmethod
  def of(cls, model, params, tokens: int, length: int) -> "Speed":
    """Of a language model (it may be abstract), on the devices that `params` lie on."""
    devices = set().union(*(array.sharding.device_set for array in jax.tree.leaves(params)))
    return cls(tokens, models.flops_per_token(model, length), sorted(devices, key=lambda d: d.id))

  def metrics(self, seconds: float) -> dict[str, float]:
    """Of a step that took so long: `tokens_per_second`, `tokens_per_second_per_chip`, `mfu`; the
    last where the peak is known, none for a step that was not timed (0 seconds)."""
    if seconds <= 0:
      return {}
    rate = self.tokens / seconds
    found = {"tokens_per_second": rate, "tokens_per_second_per_chip": rate / self.chips}
    if self.peak is not None:
      found["mfu"] = TRAINING * self.flops_per_token * rate / self.peak
    return found

  def text(self, metrics: dict[str, float]) -> str:
    """The metrics in a few words: `120,000 tokens/s  15,000 each chip  41.3% MFU`."""
    parts = [f"{metrics.get('tokens_per_second', 0):,.0f} tokens/s"]
    if self.chips > 1 and "tokens_per_second_per_chip" in metrics:
      parts.append(f"{metrics['tokens_per_second_per_chip']:,.0f} each chip")
    if "mfu" in metrics:
      parts.append(f"{metrics['mfu']:.1%} MFU")
    return "  ".join(parts)
