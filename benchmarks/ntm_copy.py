"""Training steps a second of a Neural Turing Machine on copying: memjax beside PyTorch.

Memory 128 x 20, LSTM 100, one read and one write head, batch 16, 42 steps; forward, backward, clip,
Adam; float32, two threads. PyTorch runs the same equations with the same parameters, which is
checked before anything is timed, eagerly and under `torch.compile`.

    python -m benchmarks.ntm_copy [--rounds 5] [--steps 20]
"""

import argparse
import os
import statistics
import time

THREADS = 2
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it sees processors
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402

from memjax.core import join, split  # noqa: E402
from memjax.slots import NeuralTuringMachine  # noqa: E402

try:
  import torch
  from torch.nn import functional
except ImportError:
  torch = None

BATCH, STEPS, BITS, SLOTS, WIDTH, HIDDEN = 16, 42, 8, 128, 20, 100
RATE, CLIP = 1e-3, 50.0


def data():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2, (BATCH, STEPS, BITS + 1)).astype(np.float32)
  return x, x[:, ::-1, :BITS].copy()


def memjax_step(ntm, x, target):
  """A function that makes one training step and returns the loss."""
  params, rest = split(ntm)
  optimiser = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
  x, target = jnp.asarray(x), jnp.asarray(target)

  def loss(params):
    ntm = join(params, rest)
    y, _ = ntm(x, ntm.init_state(BATCH))
    return optax.sigmoid_binary_cross_entropy(y, target).sum() / BATCH

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimiser.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  carry = [params, optimiser.init(params)]

  def run():
    *carry[:], value = step(*carry)
    return float(value)

  return run


def torch_model(ntm):
  """The same machine in PyTorch, with a copy of `ntm`'s parameters."""
  numbers = {name: torch.tensor(np.asarray(a)) for name, a in split(ntm)[0].items()}

  class Machine(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.cell = torch.nn.LSTMCell(BITS + 1 + WIDTH, HIDDEN)
      self.heads = torch.nn.Linear(HIDDEN, 2 * (WIDTH + 6) + 2 * WIDTH)
      self.out = torch.nn.Linear(HIDDEN + WIDTH, BITS)
      for name in ("first_memory", "first_weights", "first_reads"):
        self.register_parameter(name, torch.nn.Parameter(numbers[name].clone()))
      recurrent = numbers["controller/recurrent/0/kernel"]
      inner = torch.cat([numbers["controller/inner/0/kernel"], recurrent[:WIDTH]])
      with torch.no_grad():
        self.cell.weight_ih.copy_(inner.T)
        self.cell.weight_hh.copy_(recurrent[WIDTH:].T)
        self.cell.bias_ih.copy_(numbers["controller/inner/0/bias"])
        self.cell.bias_hh.zero_()
        for layer, name in ((self.heads, "heads"), (self.out, "out")):
          layer.weight.copy_(numbers[f"{name}/kernel"].T)
          layer.bias.copy_(numbers[f"{name}/bias"])

    def forward(self, x):
      h = c = x.new_zeros(BATCH, HIDDEN)
      memory = self.first_memory.expand(BATCH, SLOTS, WIDTH)
      w = torch.softmax(self.first_weights, -1).expand(BATCH, 2, SLOTS)
      read = torch.tanh(self.first_reads).expand(BATCH, WIDTH)
      outputs = []
      for x_t in x.unbind(1):
        h, c = self.cell(torch.cat([x_t, read], -1), (h, c))
        p = self.heads(h).clamp(-20, 20).split([2 * WIDTH, 2, 2, 6, 2, WIDTH, WIDTH], -1)
        key, shift = p[0].tanh().view(BATCH, 2, WIDTH), p[3].view(BATCH, 2, 3).softmax(-1)
        strength, gate, gamma = (a.unsqueeze(-1) for a in (p[1], p[2], p[4]))
        norms = key.norm(dim=-1, keepdim=True) * memory.norm(dim=-1).unsqueeze(1)
        cosine = torch.bmm(key, memory.transpose(1, 2)) / (norms + 1e-8)
        content = (functional.softplus(strength) * cosine).softmax(-1)
        gate = gate.sigmoid()
        mixed = gate * content + (1 - gate) * w
        back, stay, forth = shift.split(1, -1)
        moved = back * mixed.roll(-1, -1) + stay * mixed + forth * mixed.roll(1, -1)
        w = (moved + 1e-16) ** (1 + functional.softplus(gamma))
        w = w / w.sum(-1, keepdim=True)
        read = torch.bmm(w[:, :1], memory).squeeze(1)
        erase, add = p[5].sigmoid().unsqueeze(1), p[6].tanh().unsqueeze(1)
        writing = w[:, 1].unsqueeze(-1)
        memory = memory * (1 - writing * erase) + writing * add
        outputs.append(self.out(torch.cat([h, read], -1)).clamp(-20, 20))
      return torch.stack(outputs, 1)

  return Machine()


def torch_step(model, forward, x, target):
  """As `memjax_step`; `forward` is the model or its compiled form."""
  optimiser = torch.optim.Adam(model.parameters(), RATE)
  x, target = torch.from_numpy(x), torch.from_numpy(target)

  def run():
    optimiser.zero_grad()
    loss = functional.binary_cross_entropy_with_logits(forward(x), target, reduction="sum") / BATCH
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    return loss.item()

  return run


def contestants(args):
  """Steps by name, after the check that all compute the same."""
  sizes = {"out": BITS, "slots": SLOTS, "width": WIDTH, "hidden": HIDDEN, "start": "trained"}
  ntm = NeuralTuringMachine(BITS + 1, **sizes, rngs=nnx.Rngs(0))
  x, target = data()
  steps = {"memjax": memjax_step(ntm, x, target)}
  if torch is None:
    print("PyTorch is not installed: memjax alone is timed (pip install torch for the peers).")
    return steps
  torch.set_num_threads(THREADS)
  model = torch_model(ntm)
  expected = np.asarray(ntm(jnp.asarray(x), ntm.init_state(BATCH))[0])
  np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, atol=2e-4)
  steps["torch eager"] = torch_step(model, model, x, target)
  if not args.no_compile:
    model = torch_model(ntm)
    steps["torch.compile"] = torch_step(model, torch.compile(model), x, target)
  return steps


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5, help="how often each takes its turn")
  parser.add_argument("--steps", type=int, default=20, help="timed steps in a turn")
  parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
  args = parser.parse_args()
  steps, times, start_up = contestants(args), {}, {}
  for name, run in steps.items():
    start = time.perf_counter()
    run(), run(), run()
    start_up[name], times[name] = time.perf_counter() - start, []
  for _ in range(args.rounds):
    for name, run in steps.items():
      for _ in range(args.steps):
        start = time.perf_counter()
        run()
        times[name].append(time.perf_counter() - start)
  print(f"{'':14}{'start-up s':>11}{'ms a step':>11}{'steps/s':>9}{'memjax is':>11}")
  ours = statistics.median(times["memjax"])
  for name, values in times.items():
    step = statistics.median(values)
    row = f"{name:14}{start_up[name]:11.1f}{1e3 * step:11.2f}{1 / step:9.1f}"
    print(row + (f"{step / ours:10.2f}x" if name != "memjax" else ""))


if __name__ == "__main__":
  main()
