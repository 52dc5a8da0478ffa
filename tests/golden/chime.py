"""Writes chime.npz: passages' hidden states through CHIME's two memories, and gradients; stated
again in NumPy after the authors' code (LuJunru/CHIME: CHIME.py, TransformerEncoder.py).

    python tests/golden/chime.py

The heads are proper ones: that code splits them without moving their axis, so that it is the same
with one head only. Run with copied weights (torch 2.13.0, float32), with one head as it is and with
two once its heads are moved, it differs by less than 1e-6, forward and gradients.
"""

import pathlib
from typing import Any

import complex_step as cs
import numpy as np

BATCH, PASSAGES, CONTEXT, ANSWER, DIM, HEADS, HIDDEN = 2, 3, 3, 2, 4, 2, 6


def linear(p, name, x):
  return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p, name, x):
  return cs.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])


def attention(p, name, x, others):
  def heads(a):
    return a.reshape(*a.shape[:2], HEADS, -1).swapaxes(1, 2)

  q, k, v = (
    heads(linear(p, f"{name}/{part}", a))
    for part, a in (("query", x), ("key", others), ("value", others))
  )
  weights = cs.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
  return linear(p, f"{name}/out", (weights @ v).swapaxes(1, 2).reshape(x.shape))


def gate(p, name, memory, others):
  look = f"{name}/look"
  a = norm(p, f"{look}/attended", memory + attention(p, look, memory, others))
  inner = cs.relu(linear(p, f"{look}/up", a))
  z = norm(p, f"{look}/fed", a + linear(p, f"{look}/down", inner))
  return cs.sigmoid(linear(p, f"{name}/gate", np.concatenate([z, memory], axis=2)))


def memories(p, hidden):
  """Context and answer memory after each passage of `hidden [B, P, C + A, D]`."""
  context, answer, found = None, None, []
  for j in range(hidden.shape[1]):
    c, a = hidden[:, j, :CONTEXT], hidden[:, j, CONTEXT:]
    if context is None:
      context, answer = c, a
    else:
      g = gate(p, "contexts", context, c)
      context = g * context + (1 - g) * c
      g = gate(p, "answers", answer, context)
      answer = g * answer + (1 - g) * a
    found.append(np.concatenate([context, answer], axis=1))
  return np.stack(found, axis=1)


def draw():
  rng, p = np.random.default_rng(0), {}
  sizes = {f"look/{part}": (DIM, DIM) for part in ("query", "key", "value", "out")}
  sizes |= {"look/up": (DIM, HIDDEN), "look/down": (HIDDEN, DIM), "gate": (2 * DIM, 1)}
  for name in ("contexts", "answers"):
    for part, (rows, columns) in sizes.items():
      p[f"{name}/{part}/kernel"] = rng.normal(size=(rows, columns)) * rows**-0.5
      p[f"{name}/{part}/bias"] = 0.1 * rng.normal(size=columns)
    for part in ("attended", "fed"):
      p[f"{name}/look/{part}/scale"] = 1 + 0.1 * rng.normal(size=DIM)
      p[f"{name}/look/{part}/bias"] = 0.1 * rng.normal(size=DIM)
  hidden = rng.normal(size=(BATCH, PASSAGES, CONTEXT + ANSWER, DIM))
  return {name: a.astype(np.float32) for name, a in (p | {"hidden": hidden}).items()}


def main():
  arrays = draw()

  def loss(arrays):
    return np.sum(np.sin(memories(arrays, arrays["hidden"])))

  found = {f"in/{name}": a for name, a in arrays.items()}
  found |= {"y": memories(arrays, arrays["hidden"])}
  found |= {f"grad/{name}": a for name, a in cs.gradients(loss, arrays).items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  saved: dict[str, Any] = {name: a.astype(np.float32) for name, a in found.items()}
  np.savez_compressed(path, **saved)


if __name__ == "__main__":
  main()
