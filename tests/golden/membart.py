"""Writes membart.npz: two turns through MemBART's encoder as its authors' code computes it
(qywu/memformers, models/membart/membart_encoder.py and membart_attention.py, without dropout), and
gradients; stated again in NumPy.

    python tests/golden/membart.py

Between the turns row 1 is reset. Rows end in padding: places of the code count padding too. That
code with copied weights (torch 2.13.0, its BART base classes replaced by stubs) differs by at most
6e-8 of an array's largest entry in float64, forward and gradients, and by 4e-6 in float32.
"""

import pathlib
from typing import Any

import complex_step as cs
import numpy as np
from scipy import special

BATCH, TOKENS, SLOTS, DIM, HIDDEN, HEADS, LAYERS = 2, 3, 2, 4, 6, 2, 2
VALID = np.array([[[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [1, 1, 1]]], bool)  # by turns
RESET = np.array([[0, 0], [0, 1]])


def gelu(x):
  """Exact; erf of a complex argument."""
  return x * (1 + special.erf(x / np.sqrt(2))) / 2


def linear(p, name, x):
  return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p, name, x):
  return cs.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])


def mask(valid):
  """What is added to the scores `[B, 1, N + T, N + T]`."""
  seen = np.concatenate([np.ones((BATCH, SLOTS), bool), valid], axis=1)
  both = np.broadcast_to(seen[:, None], (BATCH, seen.shape[1], seen.shape[1])).copy()
  both[:, :SLOTS, :SLOTS] = np.eye(SLOTS)
  return np.where(both, 0, np.finfo(np.float32).min)[:, None]


def heads(x):
  return x.reshape(BATCH, -1, HEADS, DIM // HEADS).swapaxes(1, 2)


def layer(p, m, h, added):
  """All rows in one attention, then each stream through its own norms and feed-forward."""
  streams = {"slots": m, "tokens": h}
  scale = (DIM // HEADS) ** -0.5
  q = np.concatenate([linear(p, f"{s}/query", x) * scale for s, x in streams.items()], axis=1)
  k = np.concatenate([linear(p, f"{s}/key", x) for s, x in streams.items()], axis=1)
  v = np.concatenate([linear(p, f"{s}/value", x) for s, x in streams.items()], axis=1)
  weights = cs.softmax(heads(q) @ heads(k).swapaxes(-1, -2) + added)
  y = (weights @ heads(v)).swapaxes(1, 2).reshape(q.shape)
  found = []
  for (s, x), seen in zip(streams.items(), (y[:, :SLOTS], y[:, SLOTS:]), strict=True):
    x = norm(p, f"{s}/attended", x + linear(p, f"{s}/out", seen))
    found.append(norm(p, f"{s}/fed", x + linear(p, f"{s}/down", gelu(linear(p, f"{s}/up", x)))))
  return found


def encode(p, x, memory, reset, valid):
  old = norm(p, "started", (1 - reset)[:, None, None] * memory + p["bias"])
  m, h, added = old, norm(p, "embedded", x + p["places"]), mask(valid)
  for i in range(LAYERS):
    own = {name.removeprefix("layers/"): a[i] for name, a in p.items() if name[:7] == "layers/"}
    m, h = layer(own, m, h, added)
  alpha = cs.sigmoid(linear(p, "gate", gelu(linear(p, "inner", m))))
  return alpha * m + (1 - alpha) * old, h


def turns(p):
  memory, h = p["memory"], np.zeros(0)
  for x, valid, reset in zip(p["x"], VALID, RESET, strict=True):
    memory, h = encode(p, x, memory, reset, valid)
  return memory, h


def draw():
  rng, p = np.random.default_rng(0), {}

  def linears(name, rows, columns, *stack):
    p[f"{name}/kernel"] = rng.normal(size=(*stack, rows, columns)) * rows**-0.5
    p[f"{name}/bias"] = 0.1 * rng.normal(size=(*stack, columns))

  def norms(name, *stack):
    p[f"{name}/scale"] = 1 + 0.1 * rng.normal(size=(*stack, DIM))
    p[f"{name}/bias"] = 0.1 * rng.normal(size=(*stack, DIM))

  for s in ("slots", "tokens"):
    for name in ("query", "key", "value", "out"):
      linears(f"layers/{s}/{name}", DIM, DIM, LAYERS)
    linears(f"layers/{s}/up", DIM, HIDDEN, LAYERS)
    linears(f"layers/{s}/down", HIDDEN, DIM, LAYERS)
    norms(f"layers/{s}/attended", LAYERS)
    norms(f"layers/{s}/fed", LAYERS)
  linears("inner", DIM, DIM)
  linears("gate", DIM, 1)
  norms("embedded")
  norms("started")
  sizes = {"bias": (SLOTS, DIM), "places": (TOKENS, DIM), "memory": (BATCH, SLOTS, DIM)}
  sizes["x"] = (2, BATCH, TOKENS, DIM)
  p |= {name: rng.normal(size=size) for name, size in sizes.items()}
  return {name: a.astype(np.float32) for name, a in p.items()}


def main():
  arrays = draw()
  memory, h = turns({name: a.astype(np.float64) for name, a in arrays.items()})

  def loss(arrays):
    memory, h = turns(arrays)
    return np.sum(np.sin(h[VALID[1]])) + np.sum(np.cos(memory))

  found = {f"in/{name}": a for name, a in arrays.items()} | {"m": memory, "h": h}
  found |= {f"grad/{name}": a for name, a in cs.gradients(loss, arrays).items()}
  saved: dict[str, Any] = {name: a.astype(np.float32) for name, a in found.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **saved)


if __name__ == "__main__":
  main()
