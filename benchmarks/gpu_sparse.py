"""The bag and its backward pass on an NVIDIA GPU, beside plain XLA and PyTorch, in GB/s.

    pip install -e '.[cuda13]' torch
    python -m benchmarks.gpu_sparse

8192 tokens x 128 rows of a bfloat16 table of 2^20, at 512, 1024 and 2048 columns. Forward counts
the rows read; backward (`dw` and the touched rows in float32) the rows read, those written, and the
gradient once. Shares are of what a large copy reaches in the same run. Results are checked against
the definition before anything is timed. PyTorch's column needs torch with CUDA; its backward pass
writes a dense bfloat16 gradient. Under 8 minutes; exit code 2 where there is no GPU, 1 where a
result is wrong. `--tiny` runs the same at a tiny size, on a CPU too.
"""

import argparse
import os
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory as well

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.embedding_bag import dot_bag, embedding_bag, reference, touched_rows

FULL = {"tokens": 8192, "bag": 128, "rows": 2**20, "dims": (512, 1024, 2048), "copied": 2**31}
TINY = {"tokens": 48, "bag": 8, "rows": 64, "dims": (128,), "copied": 2**20}
GOALS = {"forward": 0.9, "backward": 0.7}
CHECKED = 16  # tokens
CHUNK = 256  # tokens that plain XLA handles at once: [256, 128, 2048] bfloat16 is 128 MiB


def seconds(call, repeats: int, wait) -> float:
  """Median of `repeats` runs of a few calls each, after a warm-up; a result at a time is kept."""

  def run(count: int) -> float:
    start, result = time.perf_counter(), None
    for _ in range(count):
      result = None  # freed before the next one is made: it may be gigabytes
      result = call()
    wait(result)
    return (time.perf_counter() - start) / count

  run(1)
  count = max(1, min(20, int(0.05 / run(2))))  # long enough that dispatch does not count
  return statistics.median(run(count) for _ in range(repeats))


def data(sizes: dict, dim: int):
  """values `[N, dim]` bfloat16, ids, weights `[T, b]`, gradient `[T, dim]`, on the device."""
  tokens, bag, rows = sizes["tokens"], sizes["bag"], sizes["rows"]
  keys = jax.random.split(jax.random.key(dim), 4)
  return (
    jax.random.normal(keys[0], (rows, dim), jnp.bfloat16),
    jax.random.randint(keys[1], (tokens, bag), 0, rows, jnp.int32),
    jax.random.normal(keys[2], (tokens, bag)),
    jax.random.normal(keys[3], (tokens, dim)),
  )


def ours(on_gpu: bool):
  """forward(values, ids, weights), backward(values, ids, weights, gradient)."""
  name = "gpu" if on_gpu else "chunk"  # by name: nothing falls back silently

  def forward(values, ids, weights):
    return embedding_bag(values, ids, weights, implementation=name)

  def backward(values, ids, weights, g):
    grad_weights = dot_bag(values, ids, g, implementation=name)
    return grad_weights, touched_rows(ids, weights, g, values.shape[0])

  return jax.jit(forward), jax.jit(backward)


def plain():
  """The same as one would write it: `values[ids]` and `einsum`, over chunks that fit in memory."""

  def chunks(*arrays):
    size = min(CHUNK, arrays[0].shape[0])
    return tuple(a.reshape(-1, size, a.shape[1]) for a in arrays)

  def forward(values, ids, weights):
    bag = lambda chunk: jnp.einsum("tb,tbd->td", chunk[1], values[chunk[0]].astype(jnp.float32))  # noqa: E731
    return jax.lax.map(bag, chunks(ids, weights)).reshape(ids.shape[0], -1)

  def backward(values, ids, weights, g):
    dot = lambda chunk: jnp.einsum("td,tbd->tb", chunk[1], values[chunk[0]].astype(jnp.float32))  # noqa: E731
    grad_weights = jax.lax.map(dot, chunks(ids, g)).reshape(ids.shape)
    return grad_weights, touched_rows(ids, weights, g, values.shape[0])

  return jax.jit(forward), jax.jit(backward)


def peer(on_gpu: bool):
  """PyTorch, or None and the reason why not."""
  try:
    import torch
  except ImportError:
    return None, "not installed"
  if on_gpu and not torch.cuda.is_available():
    return None, f"{torch.__version__} is without CUDA"
  return torch, torch.__version__


def theirs(torch, values, ids, weights, g) -> dict:
  """Calls of `embedding_bag` of PyTorch, forward and backward, on the same memory."""
  table, ids, g = (torch.from_dlpack(a) for a in (values, ids.astype(jnp.int32), g))
  weights, g = torch.from_dlpack(weights).to(table.dtype), g.to(table.dtype)
  options = {"mode": "sum", "per_sample_weights": weights}

  def forward():
    with torch.no_grad():
      return torch.nn.functional.embedding_bag(ids, table, **options)

  table_, weights_ = table.detach().requires_grad_(), weights.detach().requires_grad_()
  y = torch.nn.functional.embedding_bag(ids, table_, mode="sum", per_sample_weights=weights_)

  def backward():
    return torch.autograd.grad(y, (table_, weights_), g, retain_graph=True)

  return {"forward": forward, "backward": backward}


def worst(got, want) -> float:
  """The largest difference, as a share of the largest number."""
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def check(form, values, ids, weights, g) -> float:
  """The worst error of a form on the first tokens, against the definition."""
  forward, backward = form
  ids, weights, g = ids[:CHECKED], weights[:CHECKED], g[:CHECKED]
  ids = ids.at[0, 0].set(values.shape[0]).at[1, :2].set(3)  # padding, and a row read twice
  grad_weights, touched = backward(values, ids, weights, g)
  with jax.default_matmul_precision("highest"):  # a GPU would round the definition's factors
    y, dots = reference.embedding_bag(values, ids, weights), reference.dot_bag(values, ids, g)
    want = touched_rows(ids, weights, g, values.shape[0])
  if not (np.array_equal(touched.ids, want.ids) and touched.count == want.count):
    return np.inf
  return max(
    worst(forward(values, ids, weights), y),
    worst(grad_weights, dots),
    worst(touched.rows, want.rows),
  )


def copy_rate(size: int, repeats: int) -> float:
  """Bytes a second, read and written, of a copy of `size` bytes."""
  array = jnp.ones((size // 4,), jnp.float32)
  call = jax.jit(jnp.negative)
  return 2 * size / seconds(lambda: call(array), repeats, jax.block_until_ready)


def width(sizes: dict, dim: int, copied: float, options) -> bool:
  """Checks, times and prints one width; whether all was right."""
  arrays = values, ids, weights, g = data(sizes, dim)
  on_gpu = jax.default_backend() == "gpu"
  mine, xla = ours(on_gpu), plain()
  error = check(mine, *arrays)
  print(f"{dim:5d}  largest error {error:.1e}", flush=True)
  if not error < 1e-4:
    print("WRONG: nothing is timed")
    return False
  read = ids.size * dim * values.dtype.itemsize
  written = min(values.shape[0], ids.size) * dim * 4
  moved = {"forward": read, "backward": read + written + g.size * 4}
  found: dict = {}
  for which, form in (("memjax", mine), ("XLA", xla)):
    calls = {"forward": lambda f=form: f[0](values, ids, weights)}
    calls["backward"] = lambda f=form: f[1](*arrays)
    for name, call in calls.items():
      found[name, which] = seconds(call, options.repeats, jax.block_until_ready)
  torch, _ = peer(on_gpu)
  if torch is not None:
    wait = (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None)
    for name, call in theirs(torch, *arrays).items():
      try:
        found[name, "PyTorch"] = seconds(call, options.repeats, wait)
      except RuntimeError as error:  # out of memory, or no kernel for the dtype
        print(f"       PyTorch {name}: {str(error).splitlines()[0][:80]}")
  for (name, which), took in sorted(found.items(), key=lambda item: item[0][0], reverse=True):
    rate, ratio = moved[name] / took, took / found[name, "memjax"]
    goal = f"{GOALS[name]:8.0%}" if which == "memjax" else ""
    print(
      f"{dim:5d}  {name:9s} {which:8s}{took * 1e3:10.2f}{rate / 1e9:9.0f}{rate / copied:9.0%}"
      f"{ratio:8.1f}x{goal}"
    )
  return True


def main(arguments=None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=7)
  parser.add_argument("--tiny", action="store_true", help="the same at a tiny size, on a CPU too")
  options = parser.parse_args(arguments)
  backend = jax.default_backend()
  if backend != "gpu" and not options.tiny:
    print(
      f"needs an NVIDIA GPU and jax with CUDA (pip install -e '.[cuda13]'); jax sees: {backend}"
    )
    return 2
  start, sizes = time.perf_counter(), TINY if options.tiny else FULL
  print(
    f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch: {peer(backend == 'gpu')[1]}"
  )
  copied = copy_rate(sizes["copied"], options.repeats)
  print(f"copy: {copied / 1e9:.0f} GB/s\n")
  print(f"{'dim':>5s}  {'pass':9s} {'form':8s}{'ms':>10s}{'GB/s':>9s}{'of copy':>9s}", end="")
  print(f"{'slower':>9s}{'goal':>8s}")
  right = all([width(sizes, dim, copied, options) for dim in sizes["dims"]])
  print(f"\n{time.perf_counter() - start:.0f} s in all")
  return 0 if right else 1


if __name__ == "__main__":
  sys.exit(main())
