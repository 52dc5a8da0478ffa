"""Writes dnc.npz: the computation of the Differentiable Neural Computer's authors, restated.

Read in github.com/google-deepmind/dnc at f5981c6 (dnc/dnc.py, access.py, addressing.py) and, for
the LSTM, dm-sonnet 1; restated here a row at a time in float64, with gradients by central
differences. The code needs TensorFlow 1 and is not run.

    python tests/golden/dnc.py
"""

import pathlib

import numpy as np

D, OUT, C, STEPS, ROWS = 3, 2, 5, 6, 2
SMALL = 1e-6
CASES = {  # slots, width, read heads, write heads, clip
  "one": (5, 3, 2, 1, 20.0),
  "two": (4, 3, 2, 2, 0.6),  # so small a bound is reached
}


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def shapes(slots, width, reads, writes):
  """The variables by the authors' names: `/w` and `/b` of each linear layer, and the LSTM's."""
  sizes = {
    "write_vectors": writes * width, "erase_vectors": writes * width, "free_gate": reads,
    "allocation_gate": writes, "write_gate": writes, "read_mode": reads * (1 + 2 * writes),
    "write_keys": writes * width, "write_strengths": writes, "read_keys": reads * width,
    "read_strengths": reads,
  }  # fmt: skip
  found = {"lstm/w_gates": (D + reads * width + C, 4 * C), "lstm/b_gates": (4 * C,)}
  for name, size in sizes.items():
    found |= {f"{name}/w": (C, size), f"{name}/b": (size,)}
  return found | {"output_linear/w": (C + reads * width, OUT), "output_linear/b": (OUT,)}


def by_content(memory, keys, strengths):
  lengths = np.sqrt((memory**2).sum(1) + SMALL)
  key_lengths = np.sqrt((keys**2).sum(1) + SMALL)
  cosines = keys @ memory.T / (np.outer(key_lengths, lengths) + SMALL)
  return softmax(cosines * np.log1p(np.exp(strengths))[:, None])


def allocation(usage):
  usage = SMALL + (1 - SMALL) * usage
  order = np.argsort(-(np.float32(1) - usage.astype(np.float32)), kind="stable")
  found, taken = np.zeros_like(usage), 1.0
  for slot in order:
    found[slot] = (1 - usage[slot]) * taken
    taken *= usage[slot]
  return found


def step(v, x, state, sizes, frozen):
  """One token. `frozen`: the last write weights as the usage sees them, which have no gradient."""
  slots, width, reads, writes, clip = sizes
  bound = lambda a: np.clip(a, -clip, clip)  # noqa: E731
  gates = np.concatenate([x, state["reads"].ravel(), state["h"]]) @ v["lstm/w_gates"]
  i, j, f, o = np.split(gates + v["lstm/b_gates"], 4)
  c = sigmoid(f + 1) * state["c"] + sigmoid(i) * np.tanh(j)
  h, c = bound(sigmoid(o) * np.tanh(c)), bound(c)
  linear = lambda name, heads: (h @ v[f"{name}/w"] + v[f"{name}/b"]).reshape(heads, -1)  # noqa: E731

  usage = state["usage"]
  usage = usage + (1 - usage) * (1 - np.prod(1 - frozen, axis=0))
  usage = usage * np.prod(1 - sigmoid(linear("free_gate", reads)) * state["read_weights"], axis=0)

  found = by_content(
    state["memory"], linear("write_keys", writes), linear("write_strengths", writes)[:, 0]
  )
  to_free = sigmoid(linear("allocation_gate", writes))[:, 0]
  gate, simulated, write = sigmoid(linear("write_gate", writes))[:, 0], usage, []
  for k in range(writes):
    free = allocation(simulated)
    simulated = simulated + (1 - simulated) * to_free[k] * gate[k] * free
    write.append(gate[k] * (to_free[k] * free + (1 - to_free[k]) * found[k]))
  write, memory = np.stack(write), state["memory"]
  for k in range(writes):
    memory = memory * (1 - np.outer(write[k], sigmoid(linear("erase_vectors", writes)[k])))
  memory = memory + write.T @ linear("write_vectors", writes)

  link, precedence = np.zeros((writes, slots, slots)), np.zeros((writes, slots))
  for k in range(writes):
    for a in range(slots):
      for b in range(slots):
        if a != b:
          kept = (1 - write[k, a] - write[k, b]) * state["link"][k, a, b]
          link[k, a, b] = kept + write[k, a] * state["precedence"][k, b]
    precedence[k] = (1 - write[k].sum()) * state["precedence"][k] + write[k]

  mode = softmax(linear("read_mode", reads))
  read = by_content(memory, linear("read_keys", reads), linear("read_strengths", reads)[:, 0])
  read = mode[:, -1:] * read
  for k in range(writes):
    read = read + mode[:, writes + k, None] * (state["read_weights"] @ link[k].T)
    read = read + mode[:, k, None] * (state["read_weights"] @ link[k])
  words = read @ memory
  y = np.concatenate([h, words.ravel()]) @ v["output_linear/w"] + v["output_linear/b"]
  return bound(y), {
    "memory": memory, "usage": usage, "read_weights": read, "write_weights": write, "reads": words,
    "link": link, "precedence": precedence, "h": h, "c": c,
  }  # fmt: skip


def run(v, x, sizes, frozen=None):
  """Outputs `[T, OUT]`, the last state, and the write weights of every step."""
  slots, width, reads, writes, _ = sizes
  state = {
    "memory": np.zeros((slots, width)), "usage": np.zeros(slots),
    "read_weights": np.zeros((reads, slots)), "write_weights": np.zeros((writes, slots)),
    "reads": np.zeros((reads, width)), "link": np.zeros((writes, slots, slots)),
    "precedence": np.zeros((writes, slots)), "h": np.zeros(C), "c": np.zeros(C),
  }  # fmt: skip
  outputs, written = [], [state["write_weights"]]
  for t, x_t in enumerate(x):
    last = state["write_weights"] if frozen is None else frozen[t]
    y, state = step(v, x_t, state, sizes, last)
    outputs.append(y)
    written.append(state["write_weights"])
  return np.stack(outputs), state, written


def main():
  numbers, arrays = np.random.default_rng(0), {}
  draw = lambda *shape: numbers.standard_normal(shape).astype(np.float32).astype(float)  # noqa: E731
  for case, sizes in CASES.items():
    v = {name: 0.8 * draw(*shape) for name, shape in shapes(*sizes[:4]).items()}
    v = {name: value.astype(np.float32).astype(float) for name, value in v.items()}
    x = draw(ROWS, STEPS, D)
    base = [run(v, row, sizes) for row in x]
    state = {name: np.stack([b[1][name] for b in base]) for name in base[0][1]}
    weights = {name: draw(*value.shape) for name, value in state.items()}
    weights["y"] = draw(ROWS, STEPS, OUT)

    def loss(v, x, sizes=sizes, base=base, weights=weights):
      """All outputs and last states, weighted."""
      total = 0.0
      for b, row in enumerate(x):
        y, last, _ = run(v, row, sizes, frozen=base[b][2])
        total += (y * weights["y"][b]).sum() + sum((last[n] * weights[n][b]).sum() for n in last)
      return total

    def gradient(array, loss=loss, v=v, x=x):
      found, flat = np.zeros(array.size), array.reshape(-1)  # a view: changed in place
      for i, value in enumerate(flat.copy()):
        sides = []
        for side in (1e-6, -1e-6):
          flat[i] = value + side
          sides.append(loss(v, x))
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
