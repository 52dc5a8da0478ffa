"""Writes rmc.npz: a step-by-step re-statement of the authors' Relational Memory Core in NumPy
(google-deepmind/sonnet at 3db81f1, sonnet/python/modules/relational_memory.py), with gradients.

    python -m tests.golden.rmc
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, layer_norm, relu, sigmoid, softmax

# name: batch, steps, input rows and their width, slots, heads, key width, value width, blocks, gate
CASES = {
  "unit": (2, 3, 1, 3, 2, 2, 2, 2, 1, "unit"),
  "memory": (2, 3, 2, 2, 3, 1, 2, 3, 2, "memory"),
}


def draw(case, numbers):
  """Weights with the names that the library gives them, inputs, and weights of the outputs."""
  batch, steps, rows, dim, slots, heads, key, value, blocks, gate = case
  width = heads * value
  size, gate_size = heads * (2 * key + value), width if gate == "unit" else 1
  arrays = {"x": numbers.normal(size=(batch, steps, rows * dim))}

  def dense(name, a, b):
    arrays[f"{name}/kernel"] = numbers.normal(size=(a, b)) / a**0.5
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=b)

  def norm(name, a):
    arrays[f"{name}/scale"] = 1 + 0.3 * numbers.normal(size=a)
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=a)

  dense("inputs", dim, width)
  dense("input_gates", rows * width, 2 * gate_size)
  dense("memory_gates", width, 2 * gate_size)
  for layer in range(2):
    dense(f"mlp/{layer}", width, width)
  for block in range(blocks):
    dense(f"blocks/{block}/project", width, size)
    norm(f"blocks/{block}/project_norm", size)
    norm(f"blocks/{block}/attention_norm", width)
    norm(f"blocks/{block}/mlp_norm", width)
  weights = numbers.normal(size=(batch, steps, slots * width))
  return {name: a.astype(np.float32) for name, a in arrays.items()}, weights.astype(np.float32)


def core(case, p):
  """Outputs `[B, T, N W]`."""
  batch, steps, rows, dim, slots, heads, key, value, blocks, _ = case
  width = heads * value

  def dense(name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

  def norm(name, x):
    return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])

  memory = np.broadcast_to(np.eye(slots, max(slots, width))[:, :width], (batch, slots, width))
  outputs = []
  for t in range(steps):
    embedded = dense("inputs", p["x"][:, t].reshape(batch, rows, dim))
    z = np.concatenate([memory, embedded], axis=1)
    for block in range(blocks):
      name = f"blocks/{block}"
      qkv = norm(f"{name}/project_norm", dense(f"{name}/project", z))
      qkv = qkv.reshape(batch, slots + rows, heads, 2 * key + value).transpose(0, 2, 1, 3)
      q, k, v = qkv[..., :key], qkv[..., key : 2 * key], qkv[..., 2 * key :]
      read = softmax((q * key**-0.5) @ k.transpose(0, 1, 3, 2)) @ v
      read = read.transpose(0, 2, 1, 3).reshape(batch, slots + rows, width)
      z = norm(f"{name}/attention_norm", z + read)
      z = norm(f"{name}/mlp_norm", dense("mlp/1", relu(dense("mlp/0", z))) + z)
    candidate = z[:, :slots]
    gates = dense("input_gates", embedded.reshape(batch, -1))[:, None]
    gates = gates + dense("memory_gates", np.tanh(memory))
    i, f = np.split(gates, 2, axis=2)
    memory = sigmoid(i) * np.tanh(candidate) + sigmoid(f + 1.0) * memory
    outputs.append(memory.reshape(batch, -1))
  return np.stack(outputs, axis=1)


def main():
  found = {}
  for seed, (name, case) in enumerate(CASES.items()):
    arrays, weights = draw(case, np.random.default_rng(seed))
    exact = {key: a.astype(np.float64) for key, a in arrays.items()}
    found[f"{name}|weights"], found[f"{name}|y"] = weights, core(case, exact)
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    grads = gradients(lambda p, case=case, w=weights: (core(case, p) * w).sum(), arrays)
    found |= {f"{name}|grad|{key}": a for key, a in grads.items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: a.astype(np.float32) for name, a in found.items()})


if __name__ == "__main__":
  main()
