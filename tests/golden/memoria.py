"""Writes memoria.npz: segments through a model with Memoria, its engrams, and gradients; the
computation of `cosmoquester/memoria` (GPT-2 with Memoria, its embeddings left out) in NumPy.

    python tests/golden/memoria.py

Lists of engrams grow and shrink here, as in that code, and every row is alone. In this case that
code's faults do not show (see `memjax.slots.Memoria`): all short-term engrams are reminded, what is
not there is far away, and ties of the first step do not matter, which is asserted. That code with
these weights (torch 2.13.0, float32, row by row) gives the same engrams, kinds and counts; values
differ by less than 2e-6, gradients by less than 4e-6 of the largest.
"""

import pathlib
from typing import Any

import complex_step as cs
import numpy as np

ROWS, SEGMENTS, TOKENS, DIM, HEADS, LAYERS = 2, 9, 3, 4, 2, 2
NEW, SHORT, REMIND, DEPTH, LIFE, GAIN = 1, 2, (3, 1), 2, 4.0, 1.0


def linear(p, name, x):
  return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p, name, x):
  return cs.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])


def gelu(x):
  return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def attention(p, name, x, context, mask=None):
  """`[T, D]` and weights `[H, T, S]`."""

  def heads(a):
    return a.reshape(len(a), HEADS, DIM // HEADS).swapaxes(0, 1)

  q = heads(linear(p, f"{name}/query", x))
  k, v = heads(linear(p, f"{name}/key", context)), heads(linear(p, f"{name}/value", context))
  scores = q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5
  if mask is not None:
    scores = np.where(mask, scores, -1e30)
  weights = cs.softmax(scores) if len(context) else scores
  return linear(p, f"{name}/out", (weights @ v).swapaxes(0, 1).reshape(x.shape)), weights


def forward(p, x, working, reminded):
  """Outputs of a segment, and the mean weight on each reminded engram."""
  causal, seen = np.tri(len(x), dtype=bool)[None], []
  for i in range(LAYERS):
    h = norm(p, f"{i}/norm0", x)
    x = x + attention(p, f"{i}/self", h, h, causal)[0]
    if working is not None:
      x = x + attention(p, f"{i}/read", norm(p, f"{i}/norm1", x), working)[0]
      add, weights = attention(p, f"{i}/read", norm(p, f"{i}/norm2", x), reminded)
      x, seen = x + add, [*seen, weights]
    h = gelu(linear(p, f"{i}/ff/up", norm(p, f"{i}/norm3", x)))
    x = x + linear(p, f"{i}/ff/down", h)
  return norm(p, "last", x), np.concatenate(seen).mean(axis=(0, 1)).real if seen else None


def abstract(p, h):
  weights = cs.softmax(p["abs/query"] @ linear(p, "abs/key", h).T)
  return linear(p, "abs/down", linear(p, "abs/up", weights @ linear(p, "abs/value", h)))


class Memory:
  """The engrams of a row, the oldest first."""

  def __init__(self):
    self.data, self.kind, self.life = np.zeros((0, DIM)), np.zeros(0, int), np.zeros(0)
    self.counts = np.zeros((0, 0), int)

  def add(self, items):
    self.data = np.concatenate([self.data, items])
    self.kind = np.concatenate([self.kind, np.full(len(items), 1)])
    self.life = np.concatenate([self.life, np.full(len(items), LIFE)])
    self.counts = np.pad(self.counts, (0, len(items)))

  def remind(self, items):
    """Indices of the reminded engrams."""
    weight = -((items[:, None] - self.data[None]) ** 2).sum(axis=2)
    short, long = np.flatnonzero(self.kind == 2), np.flatnonzero(self.kind == 3)
    short = short[np.argsort(-weight.mean(axis=0)[short])][: REMIND[0]]
    chosen = []
    for flip in (1, -1):  # the first or the last of ties
      found = set()
      if len(short) and len(long):
        order = long[::flip]
        lasts = {int(order[np.argmax(self.counts[j, order])]) for j in short}
        found |= lasts
        for _ in range(DEPTH):
          reach = np.array([i for i in long if i not in found], int)
          if not len(reach):
            break
          lasts = {int(reach[np.argmax(self.counts[i, reach])]) for i in lasts}
          found |= lasts
      found = np.array(sorted(found), int)
      total = weight.sum(axis=0)
      near = found[np.argsort(-total[found])][: REMIND[1]]
      assert (total[near] > -(items**2).sum() / 2).all()  # nearer than what is not there
      assert not len(long) or len(near) == min(len(long), REMIND[1])
      chosen.append(np.concatenate([short, near]))
    assert len(short) == (self.kind == 2).sum() and set(chosen[0]) == set(chosen[1])
    fired = (self.kind == 1) | np.isin(np.arange(len(self.kind)), chosen[0])
    self.counts = self.counts + np.outer(fired, fired)
    return np.sort(chosen[0])

  def settle(self, reminded, weights):
    self.life[reminded] += weights * len(reminded) * GAIN
    self.life -= 1
    self.kind[self.kind == 1] = 2
    short = np.flatnonzero(self.kind == 2)
    self.kind[short[: max(len(short) - SHORT, 0)]] = 3
    stay = self.life > 0
    self.data, self.kind, self.life = self.data[stay], self.kind[stay], self.life[stay]
    self.counts = self.counts[stay][:, stay]


def run(p, x):
  """Outputs of a row `x [SEGMENTS, TOKENS, D]`, and its memory before each settling."""
  memory, working, reminded, outputs, seen = Memory(), None, None, [], []
  for piece in x:
    data = None if working is None else memory.data[reminded]
    y, weights = forward(p, piece, working, data)
    if working is not None:
      memory.settle(reminded, weights)
    outputs.append(y)
    working = abstract(p, y.real)
    memory.add(working.real)
    reminded = memory.remind(working.real)
    seen.append(
      (memory.data.copy(), memory.kind.copy(), memory.life.copy(), memory.counts, reminded)
    )
  return np.stack(outputs), seen


def loss(p):
  return sum(np.sum(np.sin(run(p, x)[0])) for x in p["x"])


def draw():
  rng, p = np.random.default_rng(1), {}
  shapes = {"abs/key": (DIM, DIM), "abs/value": (DIM, DIM)}
  shapes |= {"abs/up": (DIM, 4 * DIM), "abs/down": (4 * DIM, DIM)}
  for i in range(LAYERS):
    shapes |= {f"{i}/{a}/{b}": (DIM, DIM) for a in ("self", "read")
               for b in ("query", "key", "value", "out")}  # fmt: skip
    shapes |= {f"{i}/ff/up": (DIM, 4 * DIM), f"{i}/ff/down": (4 * DIM, DIM)}
  for name, (rows, columns) in shapes.items():
    p[f"{name}/kernel"] = rng.normal(size=(rows, columns)) * rows**-0.5
    p[f"{name}/bias"] = 0.1 * rng.normal(size=columns)
  p["abs/down/bias"] += 5  # what is not there, as if it were zero, is far away
  p["abs/query"] = rng.normal(size=(NEW, DIM))
  for name in ["last", *(f"{i}/norm{j}" for i in range(LAYERS) for j in range(4))]:
    p[f"{name}/scale"] = 1 + 0.1 * rng.normal(size=DIM)
    p[f"{name}/bias"] = 0.1 * rng.normal(size=DIM)
  p["x"] = rng.normal(size=(ROWS, SEGMENTS, TOKENS, DIM))
  return {name: a.astype(np.float32) for name, a in p.items()}


def main():
  arrays = draw()
  found = {f"in/{name}": a for name, a in arrays.items()}
  exact = {name: a.astype(np.float64) for name, a in arrays.items()}
  for row in range(ROWS):
    y, seen = run(exact, exact["x"][row])
    found[f"y/{row}"] = y
    for t, kept in enumerate(seen):
      names = ("data", "kind", "life", "counts", "reminded")
      found |= {f"{row}/{t}/{name}": a for name, a in zip(names, kept, strict=True)}
  found |= {f"grad/{name}": a for name, a in cs.gradients(loss, arrays).items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  saved: dict[str, Any] = {name: a.astype(np.float32) for name, a in found.items()}
  np.savez_compressed(path, **saved)


if __name__ == "__main__":
  main()
