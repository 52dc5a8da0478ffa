"""Training steps of the slot memories on a CPU, beside PyTorch's where there is one to install.

    pip install torch dnc memformer einops    # and clones of pytorch-ntm, relational-rnn-pytorch
    PYTHONPATH=.:pytorch-ntm:relational-rnn-pytorch:lm2/src python -m benchmarks.slots \
      [--only steps,memory] [--memories ntm,dnc] [--rounds 7]

Steps: batch 16, the papers' sizes (LM2: a bank of 256 x 256 instead of 2048 x 2048), float32, two
threads: forward, backward, clip, Adam on a loss of all outputs. Peers are the packages as they are,
at the same sizes, and take turns with ours in one process. A peer that cannot be imported is left
out. Memory: what the compiled gradient needs beside its arguments over T tokens, with everything
kept for back-propagation and with `remat="sqrt"`.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable

THREADS = 2
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it sees processors
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks.slot_cases import BATCH, CASES, Case, call, torch  # noqa: E402
from memjax.core import join, split  # noqa: E402

CLIP, RATE = 10.0, 1e-3
LENGTHS = (256, 1024, 4096)
TOKENS = ("ntm", "dnc", "dnc-large", "conformer", "lrua", "rmc", "pointer")  # one loop a token


def gradient_step(case: Case):
  """A training step of ours, its first arguments, and a function of its parameters' gradient."""
  memory = jax.jit(lambda: case.make(rngs=nnx.Rngs(0)))()
  params, rest = split(memory)
  run = call if case.run is None else case.run
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))

  def loss(params, x):
    return jnp.mean(jnp.square(run(join(params, rest), x)))

  def step(params, moments, x):
    value, grads = jax.value_and_grad(loss)(params, x)
    updates, moments = optimizer.update(grads, moments, params)
    return optax.apply_updates(params, updates), moments, value

  return step, (params, optimizer.init(params)), jax.value_and_grad(loss)


def our_step(case: Case, x) -> tuple[Callable, float, float]:
  """A call that takes a step, the seconds that compiling took, the megabytes that it needs."""
  step, carry, _ = gradient_step(case)
  start, x, held = time.perf_counter(), jnp.asarray(x), [*carry]
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, x).compile()
  seconds = time.perf_counter() - start

  def run():
    held[0], held[1], value = compiled(*held, x)
    return float(value)

  return run, seconds, compiled.memory_analysis().temp_size_in_bytes / 1e6


def their_step(case: Case, x) -> Callable | None:
  """A call that takes a step of the peer; None without one."""
  if case.peer is None or torch is None:
    return None
  try:
    module, forward = case.peer()
  except ImportError as error:
    print(f"  (no {case.name}: {error})")
    return None
  optimizer, x = torch.optim.Adam(module.parameters(), RATE), torch.from_numpy(x)

  def run():
    optimizer.zero_grad()
    loss = forward(x).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
    optimizer.step()
    return loss.item()

  return run


def steps(names: list[str], rounds: int) -> None:
  """Prints what a step of each memory takes, and how much longer the peer's does."""
  print(f"\n{'':11}{'compile s':>10}{'ms a step':>11}{'MB':>8}{'peer ms':>11}{'ratio':>9}")
  for name in names:
    case = CASES[name]
    x = case.inputs(np.random.default_rng(0))
    ours, seconds, megabytes = our_step(case, x)
    calls = {"ours": ours, "theirs": their_step(case, x)}
    times = {who: [] for who, step in calls.items() if step is not None}
    for turn in range(rounds + 2):
      for who, taken in times.items():
        start = time.perf_counter()
        calls[who]()
        if turn > 1:  # two rounds of warm-up
          taken.append(time.perf_counter() - start)
    median = {who: statistics.median(taken) for who, taken in times.items()}
    row = f"{name:11}{seconds:10.1f}{1e3 * median['ours']:11.2f}{megabytes:8.0f}"
    if "theirs" in median:
      ratio = median["theirs"] / median["ours"]
      row += f"{1e3 * median['theirs']:11.1f}{ratio:8.1f}x  {case.name}"
    print(f"{row:62}  {case.sizes}", flush=True)


def memory(names: list[str]) -> None:
  """Prints what the gradient of T tokens needs, with and without rematerialisation."""
  print(f"\n{'MB of a gradient, T =':30}" + "".join(f"{length:>9}" for length in LENGTHS))
  for name in names:
    case = CASES[name]
    dim = case.inputs(np.random.default_rng(0)).shape[-1]
    for remat in (None, "sqrt"):
      print(f"{name + f', remat={remat!r}':30}", end="", flush=True)
      options = {"remat": remat} | ({"vocab": 100} if name == "pointer" else {})  # words apart
      made = dataclasses.replace(case, make=functools.partial(case.make, **options))
      _, (params, _), gradient = gradient_step(made)
      for length in LENGTHS:
        x = jax.ShapeDtypeStruct((BATCH, length, dim), jnp.float32)
        compiled = jax.jit(gradient).lower(params, x).compile()
        print(f"{compiled.memory_analysis().temp_size_in_bytes / 1e6:9.0f}", end="", flush=True)
      print(f"   {case.sizes.partition(', T')[0].partition(', 10,000')[0]}", flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="steps,memory", help="steps, memory, or both")
  parser.add_argument("--memories", default=",".join(CASES), help="names, with commas between them")
  parser.add_argument("--rounds", type=int, default=7, help="timed steps of each")
  args = parser.parse_args()
  names, only = args.memories.split(","), args.only.split(",")
  if unknown := [name for name in names if name not in CASES]:
    parser.error(f"--memories={','.join(unknown)}: there is {', '.join(CASES)}")
  if torch is not None:
    torch.set_num_threads(THREADS)
  if "steps" in only:
    steps(names, args.rounds)
  if "memory" in only:
    memory(
      [name for name in names if name in ("ntm", "dnc", "dnc-large", "lrua", "rmc", "pointer")]
    )


if __name__ == "__main__":
  main()
