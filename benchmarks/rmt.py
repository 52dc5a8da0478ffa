"""Recurrent Memory Transformer against the package `recurrent-memory-transformer-pytorch`.

    pip install torch recurrent-memory-transformer-pytorch
    python -m benchmarks.rmt

Forward and backward through 4 segments of 512 tokens with 16 memory tokens; 4 layers of width 256,
4 heads of 64, gated feed-forward of 682, 256 ids, batch 4, float32. The peer is timed as it comes
and with its extras (hyper-connections) off, which is the paper's model and ours; all take turns in
one process. The second table is the peak memory that XLA plans for more segments.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from memjax.core import join, split
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.training import next_token_loss
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack

DIM, LAYERS, HEADS, HIDDEN, VOCAB = 256, 4, 4, 682, 256
SEGMENT, MEMORY, SEGMENTS, BATCH = 512, 16, 4, 4


def gradient(*, remat: str | None = None, blocks: str | None = None):
  """The compiled gradient of the loss of ids `[B, T + 1]`, and the parameters.

  `remat` is what back-propagation redoes of a segment, `blocks` what it redoes of a block.
  """
  attention = functools.partial(Attention, heads=HEADS, span="span")
  feed_forward = functools.partial(FeedForward, hidden=HIDDEN, gated=True)
  body = functools.partial(
    RecurrentMemoryTransformer,
    body=functools.partial(Stack, pattern=(attention, feed_forward), repeats=LAYERS, remat=blocks),
    segment=SEGMENT,
    memory=MEMORY,
    remat=remat,
  )
  trainable, rest = split(LanguageModel(VOCAB, DIM, body=body, rngs=nnx.Rngs(0)))

  def loss(trainable, ids):
    model = join(trainable, rest)
    logits, _ = model(ids[:, :-1], model.init_state(ids.shape[0]))
    nats, count = next_token_loss(logits, ids[:, 1:])
    return nats / count

  return jax.jit(jax.value_and_grad(loss)), trainable


def ours(ids, **remat):
  """A call that takes one forward and backward pass of our model."""
  step, trainable = gradient(**remat)
  ids = jnp.asarray(ids)
  return lambda: jax.block_until_ready(step(trainable, ids))


def theirs(ids, threads: int, **options):
  """A call that takes one forward and backward pass of the peer's."""
  import torch
  from recurrent_memory_transformer_pytorch import (
    RecurrentMemoryTransformer,
    RecurrentMemoryTransformerWrapper,
  )

  torch.set_num_threads(threads)
  torch.manual_seed(0)
  model = RecurrentMemoryTransformerWrapper(
    RecurrentMemoryTransformer(
      dim=DIM, num_tokens=VOCAB, depth=LAYERS, num_memory_tokens=MEMORY, seq_len=SEGMENT,
      heads=HEADS, dim_head=DIM // HEADS, **options,
    )
  )  # fmt: skip
  ids = torch.from_numpy(ids).long()

  def call():
    model.zero_grad()
    loss, _ = model(ids, return_loss=True)
    loss.backward()

  return call


def medians(calls: dict, repeats: int) -> dict[str, float]:
  """Median seconds of each call; they take turns, after one round of warm-up."""
  times = {name: [] for name in calls}
  for repeat in range(repeats + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      if repeat:
        times[name].append(time.perf_counter() - start)
  return {name: statistics.median(all_) for name, all_ in times.items()}


def speed(repeats: int, threads: int) -> None:
  """Prints tokens per second of the peer and of ours, and the ratios."""
  ids = np.random.default_rng(0).integers(VOCAB, size=(BATCH, SEGMENTS * SEGMENT + 1))
  plain = {"num_residual_streams": 1, "use_xl_memories": False}
  calls = {
    "peer, as it comes": theirs(ids, threads),
    "peer, plain": theirs(ids, threads, **plain),
    "memjax, everything kept": ours(ids),
    "memjax, products kept": ours(ids, blocks="dots"),
    "memjax, segments redone": ours(ids, remat="full"),
  }
  tokens = BATCH * SEGMENTS * SEGMENT
  found = {name: tokens / seconds for name, seconds in medians(calls, repeats).items()}
  best = max(found["peer, as it comes"], found["peer, plain"])
  print(f"{'forward + backward':28s}{'tokens/s':>10s}{'to the best peer':>18s}   goal 1.2")
  for name, rate in found.items():
    print(f"{name:28s}{rate:10,.0f}{rate / best:18.2f}")


def memory() -> None:
  """Prints the bytes that back-propagation through 1, 2, 4 and 8 segments needs."""
  print(
    f"\n{'peak MB over segments':28s}{'all kept':>10s}{'products':>10s}{'redone':>10s}"
    "   goal: linear"
  )
  for segments in (1, 2, 4, 8):
    row = []
    for remat in ({}, {"blocks": "dots"}, {"remat": "full"}):
      step, trainable = gradient(**remat)
      ids = jax.ShapeDtypeStruct((BATCH, segments * SEGMENT + 1), jnp.int32)
      row.append(step.lower(trainable, ids).compile().memory_analysis().temp_size_in_bytes / 1e6)
    print(f"{segments:<28d}" + "".join(f"{megabytes:10.1f}" for megabytes in row))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  options = parser.parse_args()
  print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}\n")
  speed(options.repeats, options.threads)
  memory()


if __name__ == "__main__":
  main()
