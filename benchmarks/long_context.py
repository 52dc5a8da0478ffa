"""Peak memory of a training step over the length of its sequence, for each way to need less.

    python -m benchmarks.long_context                     # as compiled for this machine's device
    python -m benchmarks.long_context --chip=v5e          # for a TPU that need not be there
    python -m benchmarks.long_context --markdown=table.md --picture=long_context.png
    python -m benchmarks.long_context --time=8192         # how long each takes instead

Temporaries that the compiler plans for the gradient of a language model's loss: 4 blocks of width
256 with 4 heads and a window of 256, feed-forward of 1024, 32,768 words, one row, bfloat16. Nothing
is run; parameters and their gradients are not counted. RMT: segments of 480 tokens, memory of 16.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from memjax.core import Replay, Stateless, join, split
from memjax.recurrent import RecurrentMemoryTransformer
from memjax.training import language_model_loss
from memjax.transformer import Attention, Chunked, FeedForward, LanguageModel, Stack

DIM, HEADS, HIDDEN, BLOCKS, WINDOW, VOCAB = 256, 4, 1024, 4, 256, 32_768
SEGMENT, MEMORY, CHUNK = 480, 16, 512
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def stack(*, chunk: int | None = None, cut: int | None = None, remat: str | None = None, **options):
  """The factory of the body.

  Args:
    chunk, cut: tokens of a chunk of the feed-forward and of the attention.   options: of attention.
  """
  mixer = functools.partial(Attention, heads=HEADS, **options)
  hidden = functools.partial(FeedForward, hidden=HIDDEN)
  if chunk is not None:
    hidden = functools.partial(Chunked, memory=hidden, size=chunk)
  if cut is not None:  # it carries its window over the chunks
    mixer = functools.partial(Chunked, memory=functools.partial(mixer, capacity=1), size=cut)
  return functools.partial(Stack, pattern=(mixer, hidden), repeats=BLOCKS, remat=remat)


def segments(remat):
  """The factory of a Recurrent Memory Transformer: attention within segments."""
  return functools.partial(
    RecurrentMemoryTransformer, body=stack(remat="full", span="span"), segment=SEGMENT,
    memory=MEMORY, remat=remat,
  )  # fmt: skip


FULL = {"window": WINDOW, "remat": "full"}
METHODS = {  # name: (body, chunk of the loss)
  "all kept": (stack(window=WINDOW), None),
  "remat dots": (stack(window=WINDOW, remat="dots"), None),
  "remat full": (stack(**FULL), None),
  "+ chunked loss": (stack(**FULL), CHUNK),
  "+ chunked feed-forward": (stack(**FULL, chunk=CHUNK), CHUNK),
  "+ chunked attention": (stack(**FULL, chunk=CHUNK, cut=CHUNK), CHUNK),
  "+ inputs on the host": (
    stack(window=WINDOW, remat="offload", chunk=CHUNK, cut=CHUNK),
    CHUNK,
  ),
  "RMT, segments kept": (segments(None), CHUNK),
  "RMT, replay": (segments(Replay()), CHUNK),
  "RMT, replay, sqrt": (segments(Replay(every=None)), CHUNK),
  "RMT, replay, host": (segments(Replay(offload="pinned_host")), CHUNK),
}


def gradient(name: str, length: int):
  """The jitted gradient, an abstract model's trainable part, and the ids' shape."""
  body, chunk = METHODS[name]
  if name.startswith("RMT"):
    length = length // 512 * SEGMENT  # 512 with its memory tokens
  make = lambda: LanguageModel(  # noqa: E731
    VOCAB, DIM, body=body, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
  )
  loss_fn = language_model_loss(chunk=chunk)
  trainable, rest = split(jax.eval_shape(make))

  def loss(trainable, ids):
    batch = {"inputs": ids, "targets": ids}
    return loss_fn(join(trainable, rest), Stateless(), batch, None).total

  return jax.jit(jax.grad(loss)), trainable, jax.ShapeDtypeStruct((1, length), jnp.int32)


def seconds(name: str, length: int, runs: int = 5) -> float:
  """Median seconds of the gradient on this machine's device."""
  run, trainable, ids = gradient(name, length)
  keys = jax.random.split(jax.random.key(0), len(trainable))
  arrays = {
    name: 0.05 * jax.random.normal(key, a.shape, a.dtype)
    for key, (name, a) in zip(keys, trainable.items(), strict=True)
  }
  ids, times = jnp.arange(ids.shape[1], dtype=jnp.int32)[None] % VOCAB, []
  for _ in range(runs + 1):
    start = time.perf_counter()
    jax.block_until_ready(run(arrays, ids))
    times.append(time.perf_counter() - start)
  return statistics.median(times[1:])


def memory(name: str, length: int, device=None) -> tuple[float, float]:
  """Megabytes of temporaries on the device and on the host for `length` tokens."""
  run, trainable, ids = gradient(name, length)
  if device is not None:
    place = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    trainable, ids = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), (trainable, ids)
    )
  compiled = run.lower(trainable, ids).compile().memory_analysis()
  return compiled.temp_size_in_bytes / 2**20, compiled.host_temp_size_in_bytes / 2**20


def chip(name: str | None):
  """A device of a TPU topology (needs libtpu), or None: the one that is there."""
  if name is None:
    return None
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[name]).devices[0]


def markdown(found: dict, lengths) -> str:
  """The table: MB on the device, in brackets MB on the host."""
  head = ["MB over tokens", *(f"{length:,}" for length in lengths)]
  lines = [head, ["---", *(["---:"] * len(lengths))]]
  for name, row in found.items():
    cells = [f"{a:,.0f}" + (f" (+ {b:,.0f})" if b >= 0.5 else "") for a, b in row]
    lines.append([name, *cells])
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def picture(path: str, found: dict, lengths, title: str) -> None:
  """Lines over the length; a straight line of slope 1 is linear growth."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(8, 5))
  for name, row in found.items():
    style = "--" if name.startswith("RMT") else "-"
    axes.plot(lengths, [device for device, _ in row], style, marker="o", label=name)
  axes.set(xscale="log", yscale="log", xlabel="tokens", title=title)
  axes.set_ylabel("MB of temporaries on the device")
  axes.minorticks_off()
  axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
  axes.grid(alpha=0.3)
  axes.legend(fontsize=8)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--chip", choices=TOPOLOGIES)
  parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16_384, 32_768])
  parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
  parser.add_argument("--markdown")
  parser.add_argument("--picture")
  parser.add_argument("--time", type=int, metavar="LENGTH", help="seconds at this length")
  options = parser.parse_args()
  if options.time:
    first = None
    for name in options.methods:
      took = seconds(name, options.time)
      first = first or took
      print(f"{name:26s}{took:8.2f} s  {took / first:5.2f}x", flush=True)
    return
  device, found = chip(options.chip), {}
  for name in options.methods:
    found[name] = [memory(name, length, device) for length in options.lengths]
    print(f"{name:26s}", *(f"{a:9,.0f} + {b:<7,.0f}" for a, b in found[name]), flush=True)
  if options.markdown:
    with open(options.markdown, "w") as file:
      file.write(markdown(found, options.lengths))
  if options.picture:
    what = options.chip or jax.default_backend()
    picture(options.picture, found, options.lengths, f"One training step, compiled for {what}")


if __name__ == "__main__":
  main()
