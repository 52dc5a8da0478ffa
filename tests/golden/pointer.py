"""Writes pointer.npz: a step-by-step re-statement of the authors' pointer mixture network in NumPy
(jack57lee/neuralCodeCompletion at 3c9628c, code/pointer.py), with gradients; a full window.

    python -m tests.golden.pointer
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, sigmoid, softmax

BATCH, STEPS, DIM, CELLS, WINDOW, WORDS = 2, 3, 3, 4, 5, 6


def draw(numbers):
  """Weights with the names that the library gives them, inputs, window; weights of the outputs."""
  shapes = {
    "controller/inner/0/kernel": (DIM, 4 * CELLS),
    "controller/inner/0/bias": (4 * CELLS,),
    "controller/recurrent/0/kernel": (CELLS, 4 * CELLS),
    "controller/start": (1, 2, CELLS),
    "key/kernel": (CELLS, CELLS),
    "query/kernel": (CELLS, CELLS),
    "score": (CELLS,),
    "joint/kernel": (2 * CELLS, CELLS),
    "words/kernel": (CELLS, WORDS),
    "words/bias": (WORDS,),
    "switch/kernel": (2 * CELLS, 1),
    "switch/bias": (1,),
    "x": (BATCH, STEPS, DIM),
    "window": (BATCH, WINDOW, CELLS),
  }
  arrays = {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  return arrays, numbers.normal(size=(BATCH, STEPS, WORDS + WINDOW)).astype(np.float32)


def run(p):
  """Logarithms of the second softmax, `[B, T, V + N]`."""
  window, outputs = p["window"], []
  h, c = (np.tile(a, (BATCH, 1)) for a in p["controller/start"][0])
  for t in range(STEPS):
    gates = p["x"][:, t] @ p["controller/inner/0/kernel"] + h @ p["controller/recurrent/0/kernel"]
    i, f, g, o = np.split(gates + p["controller/inner/0/bias"], 4, axis=1)  # 1 is in f's bias
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    mixed = np.tanh(window @ p["key/kernel"] + (h @ p["query/kernel"])[:, None])
    alpha = softmax(mixed @ p["score"])
    both = np.concatenate([h, (alpha[:, :, None] * window).sum(1)], axis=1)
    words = np.tanh(both @ p["joint/kernel"]) @ p["words/kernel"] + p["words/bias"]
    d = sigmoid(both @ p["switch/kernel"] + p["switch/bias"])
    outputs.append(np.log(softmax(np.concatenate([d * words, (1 - d) * alpha[:, ::-1]], axis=1))))
    window = np.concatenate([window[:, 1:], h[:, None]], axis=1)
  return np.stack(outputs, axis=1)


def main():
  arrays, weights = draw(np.random.default_rng(0))
  found = {"y": run({name: a.astype(np.float64) for name, a in arrays.items()}), "weights": weights}
  found |= {f"value|{name}": a for name, a in arrays.items()}
  grads = gradients(lambda p: (run(p) * weights).sum(), arrays)
  found |= {f"grad|{name}": a for name, a in grads.items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: a.astype(np.float32) for name, a in found.items()})


if __name__ == "__main__":
  main()
