"""What one token costs after 1k, 8k and 64k others: full attention, a window, an RMT.

    python -m benchmarks.decode

4 layers of width 256, 4 heads of 64, 256 ids, batch 1, float32; window and segment of 512 tokens,
16 memory tokens. The states are filled to the given length without computing it (an attention's
cost does not depend on what it holds), then single tokens are decoded, the state donated. Full
attention has room for the length and the tokens decoded here, no more.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import abstract_state, state_bytes
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.transformer import Attention, FeedForward, LanguageModel, Stack
from memjax.transformer.cache import KVCache

DIM, LAYERS, HEADS, VOCAB, WINDOW, SEGMENT, MEMORY = 256, 4, 4, 256, 512, 512, 16
LENGTHS = (1024, 8192, 65536)


def stack(**options):
  """A factory of the transformer's body."""
  attention = functools.partial(Attention, heads=HEADS, **options)
  return functools.partial(Stack, pattern=(attention, FeedForward), repeats=LAYERS)


def models(room: int) -> dict[str, LanguageModel]:
  """The contenders; full attention with a capacity of `room` tokens."""
  rmt = functools.partial(
    RecurrentMemoryTransformer,
    body=stack(span="span", capacity=SEGMENT + 2 * MEMORY),
    segment=SEGMENT,
    memory=MEMORY,
  )
  bodies = {
    "full attention": stack(capacity=room),
    "window": stack(window=WINDOW, capacity=WINDOW),
    "RMT": rmt,
  }
  return {
    name: LanguageModel(VOCAB, DIM, body=body, rngs=nnx.Rngs(0)) for name, body in bodies.items()
  }


def after(model, length: int):
  """The state as if `length` tokens had been read; an RMT's is of one form at all borders."""

  def filled(node):
    if isinstance(node, KVCache):
      return dataclasses.replace(node, length=jnp.full_like(node.length, length))
    return node

  state = model.init_state(1)
  if model.granularity > 1:
    return state
  return jax.tree.map(filled, state, is_leaf=lambda node: isinstance(node, KVCache))


def seconds_per_token(model, length: int, tokens: int) -> float:
  """Median over 5 rounds of `tokens` single-token calls, the first round thrown away.

  An RMT's round is a whole segment, so that it holds one read and one write block.
  """
  step = jax.jit(lambda model, ids, state: model(ids, state), donate_argnums=2)
  state, ids, rounds = after(model, length), jnp.zeros((1, 1), jnp.int32), []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(tokens):
      logits, state = step(model, ids, state)
    jax.block_until_ready(logits)
    rounds.append((time.perf_counter() - start) / tokens)
  return statistics.median(rounds[1:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--tokens", type=int, default=64, help="a round; an RMT's is a segment")
  options = parser.parse_args()
  print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
  columns = "".join(f"{f'after {n}':>14s}" for n in LENGTHS)
  print(f"{'tokens/s':16s}{columns}{'last / first':>14s}")
  sizes = {}
  for name in models(1):
    rates = []
    for length in LENGTHS:
      tokens = SEGMENT if name == "RMT" else options.tokens
      model = models(length + 5 * tokens)[name]
      rates.append(1 / seconds_per_token(model, length, tokens))
      sizes.setdefault(name, []).append(state_bytes(abstract_state(model, 1)))
    print(f"{name:16s}" + "".join(f"{r:14,.0f}" for r in rates) + f"{rates[-1] / rates[0]:14.2f}")
  print(f"\n{'state, bytes':16s}{columns}")
  for name, row in sizes.items():
    print(f"{name:16s}" + "".join(f"{size:14,d}" for size in row))


if __name__ == "__main__":
  main()
