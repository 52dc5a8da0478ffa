"""Writes memformer.npz: a segment through the encoder-only model of the public re-implementation
`lucidrains/memformer`, its GRU write, and gradients; stated again in NumPy.

    python tests/golden/memformer.py

One encoder layer without its relative position biases (the bodies have positions of their own):
attention among the tokens, attention to the slots, feed-forward, each on a layer norm and added.
Then a layer norm, and the write. That code with copied weights (torch 2.13.0) differs by at most
1.1e-7 in float64, forward and gradients; in float32 by 6e-7 forward, 6e-6 in gradients (1.4e-5 of
an array's largest entry). It has no model of the paper's own write.
"""

import pathlib
from typing import Any

import complex_step as cs
import numpy as np
from scipy import special

BATCH, TOKENS, SLOTS, DIM, HEADS = 2, 3, 2, 4, 2
VALID = np.array([[1, 1, 1], [1, 0, 1]], bool)


def gelu(x):
  """Exact; erf of a complex argument."""
  return x * (1 + special.erf(x / np.sqrt(2))) / 2


def linear(p, name, x):
  return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p, name, x):
  return cs.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])


def attention(p, name, x, context, mask=None):
  def heads(a):
    return a.reshape(*a.shape[:2], HEADS, -1).swapaxes(1, 2)

  q = heads(linear(p, f"{name}/query", x))
  k, v = heads(linear(p, f"{name}/key", context)), heads(linear(p, f"{name}/value", context))
  scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
  if mask is not None:
    scores = np.where(mask[:, None], scores, -1e30)
  y = (cs.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
  return linear(p, f"{name}/out", y)


def feed_forward(p, name, x):
  return linear(p, f"{name}/down", gelu(linear(p, f"{name}/up", x)))


def gru(p, x, h):
  new, old = linear(p, "update", x), linear(p, "old", h)
  (ri, zi, ni), (rh, zh, nh) = np.split(new, 3, axis=-1), np.split(old, 3, axis=-1)
  r, z = cs.sigmoid(ri + rh), cs.sigmoid(zi + zh)
  return (1 - z) * np.tanh(ni + r * nh) + z * h


def segment(p, x, memory, valid=VALID):
  h = norm(p, "norm0", x)
  x = x + attention(p, "self", h, h, valid[:, :, None] & valid[:, None])
  x = x + attention(p, "read", norm(p, "norm1", x), memory)
  x = x + feed_forward(p, "ff", norm(p, "norm2", x))
  y = norm(p, "last", x)
  own = np.broadcast_to(np.eye(SLOTS, dtype=bool), (BATCH, SLOTS, SLOTS))
  seen = np.broadcast_to(valid[:, None], (BATCH, SLOTS, TOKENS))
  both = np.concatenate([memory, y], axis=1)
  update = attention(p, "write", memory, both, np.concatenate([own, seen], axis=2))
  h = gru(p, update, memory)
  return y, h + feed_forward(p, "mem_ff", norm(p, "mem_norm", h))


def shapes():
  made = {}
  for name in ("self", "read", "write"):
    made |= {f"{name}/{part}": (DIM, DIM) for part in ("query", "key", "value", "out")}
  for name in ("ff", "mem_ff"):
    made |= {f"{name}/up": (DIM, 4 * DIM), f"{name}/down": (4 * DIM, DIM)}
  return made | {"update": (DIM, 3 * DIM), "old": (DIM, 3 * DIM)}


def draw():
  rng, p = np.random.default_rng(0), {}
  for name, (rows, columns) in shapes().items():
    p[f"{name}/kernel"] = rng.normal(size=(rows, columns)) * rows**-0.5
    p[f"{name}/bias"] = 0.1 * rng.normal(size=columns)
  for name in ("norm0", "norm1", "norm2", "last", "mem_norm"):
    p[f"{name}/scale"] = 1 + 0.1 * rng.normal(size=DIM)
    p[f"{name}/bias"] = 0.1 * rng.normal(size=DIM)
  x, memory = rng.normal(size=(BATCH, TOKENS, DIM)), rng.normal(size=(BATCH, SLOTS, DIM))
  return {name: a.astype(np.float32) for name, a in (p | {"x": x, "memory": memory}).items()}


def main():
  arrays = draw()
  exact = {name: a.astype(np.float64) for name, a in arrays.items()}
  y, memory = segment(exact, exact["x"], exact["memory"])

  def loss(arrays):
    y, memory = segment(arrays, arrays["x"], arrays["memory"])
    return np.sum(np.sin(y[VALID])) + np.sum(np.cos(memory))

  found = {f"in/{name}": a for name, a in arrays.items()} | {"y": y, "m": memory}
  found |= {f"grad/{name}": a for name, a in cs.gradients(loss, arrays).items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  saved: dict[str, Any] = {name: a.astype(np.float32) for name, a in found.items()}
  np.savez_compressed(path, **saved)


if __name__ == "__main__":
  main()
