"""Writes pmi.npz: a re-statement of PMI's released module in NumPy (zengxyyu/A-Framework-for-
Inference-Inspired-by-Human-Memory-Mechanisms, SW_LTM, as fetched in 2026), with gradients: two of a
shared layer's steps, the second on what the first made of its input.

    python -m tests.golden.pmi
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, layer_norm, relu, sigmoid, softmax

TOKENS, DIM, HEADS, KEY, SLOTS, LONG, BATCH, STEPS = 4, 4, 2, 3, 3, 2, 2, 2
CASES = {"corrected": (2, True), "soft": (None, False)}  # name: top_k, correction


def draw(numbers):
  """Weights with the names that the library gives them, inputs, and weights of what comes out."""
  arrays = {"x": numbers.normal(size=(BATCH, TOKENS, DIM))}

  def dense(name, out):
    arrays[f"{name}/kernel"] = numbers.normal(size=(DIM, out)) / DIM**0.5
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=out)

  for name in ("inputs", "value", "mlp"):
    dense(name, DIM)
  for name in ("query", "key"):
    dense(name, HEADS * KEY)
  dense("pooled_gates/linear", 2 * DIM)
  for name in ("norm", "mlp_norm", "ltm_norm"):
    arrays[f"{name}/scale"] = 1 + 0.3 * numbers.normal(size=DIM)
    arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=DIM)
  arrays["pooled_gates/scale"] = numbers.normal(size=DIM)
  arrays["slot_gates"] = numbers.normal(size=(SLOTS, DIM, 2 * DIM)) / DIM**0.5
  arrays["slot_bias"] = 0.3 * numbers.normal(size=(SLOTS, 2 * DIM))
  arrays["input_bias"], arrays["forget_bias"] = np.array(0.2), np.array(0.7)
  arrays["long_term"] = numbers.uniform(size=(LONG, SLOTS, DIM))
  weights = numbers.normal(size=(STEPS, BATCH, TOKENS, DIM))
  return {name: a.astype(np.float32) for name, a in arrays.items()}, weights.astype(np.float32)


def attention(p, readers, told, top_k=None):
  def heads(name, rows):
    rows = rows @ p[f"{name}/kernel"] + p[f"{name}/bias"]
    return rows.reshape(BATCH, rows.shape[1], HEADS, -1).transpose(0, 2, 1, 3)

  q, k, v = heads("query", readers), heads("key", told), heads("value", told)
  weights = softmax(q @ k.transpose(0, 1, 3, 2))
  if top_k is not None:  # after the softmax, and not made to sum to 1
    least = np.sort(weights.real, axis=-1)[..., -top_k:][..., :1]
    weights = np.where(weights.real >= least, weights, 0)
  return (weights @ v).transpose(0, 2, 1, 3).reshape(BATCH, readers.shape[1], DIM)


def module(p, x, working, long_term, top_k, correction):
  """Outputs and both memories after one step on `x [B, T, D]`."""

  def dense(name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

  def norm(name, x):
    return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])

  x = dense("inputs", x)
  z = norm("norm", working + attention(p, working, x, top_k))
  h = z
  for _ in range(4):
    h = relu(dense("mlp", h))
  z = norm("mlp_norm", z + h)
  merged = np.einsum("bcnd,bnf->bcnf", long_term, z)
  long_term = norm("ltm_norm", long_term + merged)
  pooled = dense("pooled_gates/linear", relu(p["pooled_gates/scale"] * x).mean(axis=1))
  own = np.einsum("bnd,nde->bne", np.tanh(working), p["slot_gates"]) + p["slot_bias"]
  i, f = np.split(own + pooled[:, None], 2, axis=2)
  i, f = sigmoid(i + p["input_bias"]), sigmoid(f + p["forget_bias"])
  working = i * np.tanh(z) + f * working
  by_working = attention(p, x, working)
  other = attention(p, x, long_term.mean(axis=1), top_k)
  other = attention(p, other, by_working) if correction else other
  return 0.7 * by_working + 0.3 * other, working, long_term


def outputs(p, options):
  working = np.broadcast_to(np.eye(SLOTS, DIM), (BATCH, SLOTS, DIM))
  long_term = np.broadcast_to(p["long_term"], (BATCH, *p["long_term"].shape))
  x, found = p["x"], []
  for _ in range(STEPS):
    y, working, long_term = module(p, x, working, long_term, *options)
    x = x + y
    found.append(y)
  return np.stack(found), working, long_term


def main():
  found = {}
  for seed, (name, options) in enumerate(CASES.items()):
    arrays, weights = draw(np.random.default_rng(seed))
    exact = {key: a.astype(np.float64) for key, a in arrays.items()}
    last = dict(zip(("y", "working", "long_term"), outputs(exact, options), strict=True))
    found |= {f"{name}|weights": weights} | {f"{name}|{key}": a for key, a in last.items()}
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    grads = gradients(lambda p, o=options, w=weights: (outputs(p, o)[0] * w).sum(), arrays)
    found |= {f"{name}|grad|{key}": a for key, a in grads.items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: a.astype(np.float32) for name, a in found.items()})


if __name__ == "__main__":
  main()
