"""Writes conformer_ntm.npz: the memory of Conformer-NTM by its authors, restated.

The computation of github.com/Miamoto/Conformer-NTM (espnet2/asr/ntm/heads.py, ntm_cell.py),
restated in NumPy a row at a time, with exact gradients (`complex_step`). "content" is what that
code returns; "full" takes the whole address, which it works out and drops. Linear layers are
torch's: W [out, in].

    python tests/golden/conformer_ntm.py
"""

import pathlib

import numpy as np
from complex_step import gradients, sigmoid, softmax

D, N, W, S, STEPS, ROWS = 3, 5, 2, 1, 5, 2
POINTS = W + 1 + 1 + (2 * S + 1) + 1  # of a read head: k, beta, g, s, gamma


def softplus(x):
  return np.log1p(np.exp(x))


def cosine(k, memory):
  """torch's: the product of lengths is at least 1e-8."""
  lengths = np.sqrt((k * k).sum()) * np.sqrt((memory * memory).sum(axis=1))
  return memory @ k / np.where(lengths.real > 1e-8, lengths, 1e-8)


def focus(numbers, memory, old, kind):
  k, (beta, g), s, gamma = (
    np.tanh(numbers[:W]), numbers[W : W + 2], softmax(numbers[W + 2 : W + 3 + 2 * S]),
    1 + softplus(numbers[POINTS - 1]),
  )  # fmt: skip
  found = softmax(softplus(beta) * cosine(k, memory))
  mixed = sigmoid(g) * found + (1 - sigmoid(g)) * old
  ring = np.concatenate([mixed[-S:], mixed, mixed[:S]])
  moved = np.array([ring[i : i + 2 * S + 1] @ s for i in range(N)])  # cross-correlation
  sharp = moved**gamma
  return found if kind == "content" else sharp / (sharp.sum() + 1e-16)


def run(v, x, kind):
  """Outputs `[T, D]` and the last state of one row."""
  memory, reads, outputs = np.zeros((N, W)), np.zeros(W), []
  reading = writing = np.eye(N)[0]
  for h in x:
    z = np.concatenate([h, reads])
    reading = focus(v["read/W"] @ z + v["read/b"], memory, reading, kind)
    reads = reading @ memory
    numbers = v["write/W"] @ z + v["write/b"]
    writing = focus(numbers, memory, writing, kind)
    erase, add = sigmoid(numbers[POINTS : POINTS + W]), np.tanh(numbers[POINTS + W :])
    memory = memory * (1 - np.outer(writing, erase)) + np.outer(writing, add)
    outputs.append(v["fc/W"] @ np.concatenate([h, reads]) + v["fc/b"])
  state = {"memory": memory, "reads": reads, "read_weights": reading, "write_weights": writing}
  return np.stack(outputs), state


def main():
  numbers, arrays = np.random.default_rng(0), {}
  shapes = {
    "read/W": (POINTS, D + W), "read/b": (POINTS,), "fc/W": (D, D + W), "fc/b": (D,),
    "write/W": (POINTS + 2 * W, D + W), "write/b": (POINTS + 2 * W,), "x": (ROWS, STEPS, D),
  }  # fmt: skip
  for kind in ("content", "full"):
    draw = lambda shape: numbers.standard_normal(shape).astype(np.float32)  # noqa: E731
    v = {name: draw(shape) for name, shape in shapes.items()}
    results = [run(v, x, kind) for x in v["x"]]
    parts = {name: np.stack([state[name] for _, state in results]) for name in results[0][1]}
    parts["y"] = np.stack([y for y, _ in results])
    weights = {name: draw(part.shape) for name, part in parts.items()}

    def loss(v, kind=kind, weights=weights):
      """All outputs and last states, weighted."""
      total = 0.0
      for b, x in enumerate(v["x"]):
        y, state = run(v, x, kind)
        total += sum((part * weights[name][b]).sum() for name, part in (state | {"y": y}).items())
      return total

    for group, values in (
      ("v", v),
      ("weights", weights),
      ("out", parts),
      ("d", gradients(loss, v)),
    ):
      arrays |= {f"{kind}/{group}/{name}": value for name, value in values.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
