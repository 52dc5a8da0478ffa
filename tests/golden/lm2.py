"""Writes lm2.npz: a re-statement of LM2's released memory module in NumPy (convergence-ai/lm2,
src/memory.py, as fetched in 2026), without attention dropout, with gradients.

    python -m tests.golden.lm2
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, layer_norm, relu, sigmoid, softmax

SIZE, HEADS, SEGMENTS, BATCH = 4, 2, 2, 2  # tokens of a segment = slots = width
CASES = {"all": None, "largest": 2}  # name: top_k


def draw(numbers):
  """Weights with the names that the library gives them, inputs, and weights of what comes out."""
  arrays = {"x": numbers.normal(size=(BATCH, SEGMENTS * SIZE, SIZE))}

  def dense(name, out):
    arrays[f"{name}/kernel"] = numbers.normal(size=(SIZE, out)) / SIZE**0.5
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=out)

  for name in ("query", "key", "value", "update/mlp"):
    dense(name, SIZE)
  for name in ("update/pooled_gates/linear", "update/memory_gates"):
    dense(name, 2 * SIZE)
  for name in ("update/norm", "update/mlp_norm"):
    arrays[f"{name}/scale"] = 1 + 0.3 * numbers.normal(size=SIZE)
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=SIZE)
  arrays["update/pooled_gates/scale"] = numbers.normal(size=SIZE)
  arrays["update/input_bias"], arrays["update/forget_bias"] = np.array(0.2), np.array(0.7)
  weights = numbers.normal(size=(BATCH, SEGMENTS * SIZE, SIZE))
  return {name: a.astype(np.float32) for name, a in arrays.items()}, weights.astype(np.float32)


def module(p, x, memory, top_k):
  """Outputs and memory after one segment `x [B, N, N]`."""

  def dense(name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

  def norm(name, x):
    return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])

  def heads(name, x):
    return dense(name, x).reshape(BATCH, SIZE, HEADS, -1).transpose(0, 2, 1, 3)

  q, k, v = heads("query", x), heads("key", memory), heads("value", memory)
  scores = q @ k.transpose(0, 1, 3, 2) / k.shape[-1] ** 0.5
  weights = softmax(np.where(np.tril(np.ones((SIZE, SIZE), bool)), scores, -1e30))
  if top_k is not None:  # after the softmax, and not made to sum to 1
    least = np.sort(weights.real, axis=-1)[..., -top_k:][..., :1]
    weights = np.where(weights.real >= least, weights, 0)
  read = (weights @ v).transpose(0, 2, 1, 3).reshape(BATCH, SIZE, SIZE)

  c = norm("update/norm", memory + read)
  h = relu(dense("update/mlp", relu(dense("update/mlp", c))))
  c = norm("update/mlp_norm", c + h)
  pooled = relu(p["update/pooled_gates/scale"] * x).mean(axis=1)
  both = dense("update/pooled_gates/linear", pooled)[:, None]
  both = both + dense("update/memory_gates", np.tanh(memory))
  i, f = np.split(both, 2, axis=2)
  i, f = sigmoid(i + p["update/input_bias"]), sigmoid(f + p["update/forget_bias"])
  memory = i * np.tanh(c) + f * memory
  return x + memory, memory


def outputs(p, top_k):
  memory, found = np.broadcast_to(np.eye(SIZE), (BATCH, SIZE, SIZE)), []
  for segment in range(SEGMENTS):
    x = p["x"][:, segment * SIZE : (segment + 1) * SIZE]
    y, memory = module(p, x, memory, top_k)
    found.append(y)
  return np.concatenate(found, axis=1)


def main():
  found = {}
  for seed, (name, top_k) in enumerate(CASES.items()):
    arrays, weights = draw(np.random.default_rng(seed))
    exact = {key: a.astype(np.float64) for key, a in arrays.items()}
    found[f"{name}|weights"], found[f"{name}|y"] = weights, outputs(exact, top_k)
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    grads = gradients(lambda p, k=top_k, w=weights: (outputs(p, k) * w).sum(), arrays)
    found |= {f"{name}|grad|{key}": a for key, a in grads.items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: a.astype(np.float32) for name, a in found.items()})


if __name__ == "__main__":
  main()
