"""Writes lrua.npz: a memory-augmented neural network with least recently used access, restated.

The computation read in github.com/tristandeleu/ntm-one-shot (mann/model.py; the authors of the
paper published none), restated here a row at a time in float64, with gradients by central
differences. That code needs Theano and is not run.

    python tests/golden/lrua.py
"""

import pathlib

import numpy as np

D, OUT, C, STEPS, ROWS, DECAY = 3, 2, 4, 7, 2, 0.95
CASES = {"heads": (6, 3, 2), "one": (4, 3, 1)}  # slots, width, heads


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def shapes(slots, width, heads):
  """The variables by that code's names."""
  found = {"xh": (D, 4 * C), "rh": (heads * width, 4 * C), "hh": (C, 4 * C), "b_h": (4 * C,)}
  for name, size in (("key", width), ("add", width), ("sigma", 1)):
    found |= {f"W_{name}": (heads, C, size), f"b_{name}": (heads, size)}
  return found | {"W_o": (C + heads * width, OUT), "b_o": (OUT,)}


def run(v, x, sizes):
  """Outputs before the softmax `[T, OUT]`, and the last state."""
  slots, width, heads = sizes
  memory, usage = np.full((slots, width), 1e-6), np.eye(slots)[0]
  read, reads = np.tile(np.eye(slots)[0], (heads, 1)), np.zeros((heads, width))
  h, c, outputs = np.zeros(C), np.zeros(C), []
  for x_t in x:
    gates = x_t @ v["xh"] + reads.ravel() @ v["rh"] + h @ v["hh"] + v["b_h"]
    f, i, o, u = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
    h = sigmoid(o) * np.tanh(c)
    of_heads = lambda name: np.stack([h @ w + b for w, b in zip(v["W_" + name], v["b_" + name])])  # noqa: B023,B905,E731
    keys, rows, gate = (
      np.tanh(of_heads("key")),
      np.tanh(of_heads("add")),
      sigmoid(of_heads("sigma")),
    )
    unused = np.argsort(usage, kind="stable")[:heads]
    write = gate * read
    for head in range(heads):
      write[head, unused[head]] += 1 - gate[head, 0]
    memory = memory.copy()
    memory[unused[0]] = 0
    memory = memory + write.T @ rows
    squares = np.outer((keys**2).sum(1), (memory**2).sum(1))
    e = np.exp(keys @ memory.T / np.sqrt(squares + 1e-6))
    read = e / e.sum(1, keepdims=True)
    usage = DECAY * usage + read.sum(0) + write.sum(0)
    reads = read @ memory
    outputs.append(np.concatenate([h, reads.ravel()]) @ v["W_o"] + v["b_o"])
  state = {"memory": memory, "usage": usage, "read_weights": read, "reads": reads, "h": h, "c": c}
  return np.stack(outputs), state


def main():
  numbers, arrays = np.random.default_rng(0), {}

  def draw(*shape):
    return numbers.standard_normal(shape).astype(np.float32).astype(float)

  for case, sizes in CASES.items():
    v, x = {name: draw(*shape) for name, shape in shapes(*sizes).items()}, draw(ROWS, STEPS, D)
    base = [run(v, row, sizes) for row in x]
    state = {name: np.stack([b[1][name] for b in base]) for name in base[0][1]}
    weights = {name: draw(*value.shape) for name, value in state.items()}
    weights["y"] = draw(ROWS, STEPS, OUT)

    def loss(v=v, x=x, sizes=sizes, weights=weights):
      """All outputs and last states, weighted."""
      total = 0.0
      for b, row in enumerate(x):
        y, last = run(v, row, sizes)
        total += (y * weights["y"][b]).sum() + sum((last[n] * weights[n][b]).sum() for n in last)
      return total

    def gradient(array, loss=loss):
      found, flat = np.zeros(array.size), array.reshape(-1)  # a view: changed in place
      for i, value in enumerate(flat.copy()):
        sides = []
        for side in (1e-6, -1e-6):
          flat[i] = value + side
          sides.append(loss())
        flat[i], found[i] = value, (sides[0] - sides[1]) / 2e-6
      return found.reshape(array.shape)

    arrays |= {f"{case}/v/{name}": value.astype(np.float32) for name, value in v.items()}
    arrays |= {f"{case}/weights/{name}": w.astype(np.float32) for name, w in weights.items()}
    arrays |= {f"{case}/state/{name}": value for name, value in state.items()}
    arrays |= {f"{case}/x": x.astype(np.float32), f"{case}/y": np.stack([b[0] for b in base])}
    arrays |= {f"{case}/d/{name}": gradient(value) for name, value in v.items()}
    arrays[f"{case}/d/x"] = gradient(x)
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
