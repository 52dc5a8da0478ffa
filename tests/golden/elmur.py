"""Writes elmur.npz: a segment-by-segment re-statement of the authors' ELMUR layer in NumPy
(CognitiveAISystems/RATE at 8b80e4e, offline_rl_baselines/ELMUR), with gradients.

    python -m tests.golden.elmur
"""

import dataclasses
import functools
import pathlib

import numpy as np

from tests.golden.complex_step import gradients, layer_norm, sigmoid, softmax


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes and options; `released` is what the code does, its opposite what its paper says."""

  released: bool
  pre_norm: bool = False
  batch: int = 2
  segments: int = 4
  segment: int = 3
  dim: int = 4
  heads: int = 2
  slots: int = 2
  hidden: int = 3
  distance: int = 6
  blend: float = 0.7


CASES = {
  "released": Case(True),
  "released_pre_norm": Case(True, pre_norm=True),
  "paper": Case(False),
}


def draw(case, numbers):
  """Weights with the names that the library gives them, inputs, first slots; weights of a loss."""
  dim, arrays = case.dim, {}

  def dense(name, a, b, bias=False):
    arrays[f"{name}/kernel"] = numbers.normal(size=(a, b)) / a**0.5
    if bias:
      arrays[f"{name}/bias"] = 0.3 * numbers.normal(size=b)

  for name, bias in (("among", False), ("reading", True), ("writing", True)):
    for part in ("query", "key", "value"):
      dense(f"{name}/{part}", dim, dim)
    dense(f"{name}/out", dim, dim, bias)
  dense("places", dim, dim)
  for name in ("feed_forward", "memory_feed_forward"):
    dense(f"{name}/gate", dim, case.hidden)
    dense(f"{name}/up", dim, case.hidden)
    dense(f"{name}/down", case.hidden, dim)
  for index in range(5):
    arrays[f"norms/{index}/scale"] = 1 + 0.3 * numbers.normal(size=dim)
    arrays[f"norms/{index}/bias"] = 0.3 * numbers.normal(size=dim)
  arrays["content_bias"] = numbers.normal(size=(case.heads, dim // case.heads))
  arrays["place_bias"] = numbers.normal(size=(case.heads, dim // case.heads))
  arrays["bias"] = numbers.normal(size=(2 * case.distance - 1, case.heads))
  arrays["first"] = numbers.normal(size=(case.slots, dim))
  arrays["x"] = numbers.normal(size=(case.batch, case.segments * case.segment, dim))
  weights = {
    "y": numbers.normal(size=arrays["x"].shape),
    "memory": numbers.normal(size=(case.batch, case.slots, dim)),
  }
  return tuple({k: a.astype(np.float32) for k, a in d.items()} for d in (arrays, weights))


def run(case, p):
  """Outputs `[B, T, D]`, slots `[B, M, D]` and their times `[B, M]`."""
  rows = [row(case, p, x) for x in p["x"]]
  return tuple(np.stack(a) for a in zip(*rows, strict=True))


def row(case, p, x):
  """One sequence `x [T, D]`; all slots get a candidate, as in the code."""
  size, width = case.segment, case.dim // case.heads
  memory, times, outputs = p["first"], np.full(case.slots, -1), []

  def norm(index, a):
    return layer_norm(a, p[f"norms/{index}/scale"], p[f"norms/{index}/bias"], eps=1e-8)

  def sub(index, a, fn):
    return a + fn(norm(index, a)) if case.pre_norm else norm(index, a + fn(a))

  def split(name, a):  # [n, D] -> [H, n, K]
    return (a @ p[f"{name}/kernel"]).reshape(len(a), case.heads, width).transpose(1, 0, 2)

  def merge(name, weights, values):
    mixed = (weights @ values).transpose(1, 0, 2).reshape(weights.shape[1], -1)
    return mixed @ p[f"{name}/out/kernel"] + p.get(f"{name}/out/bias", 0)

  def cross(name, a, others, apart):
    index = np.clip(apart, 1 - case.distance, case.distance - 1) + case.distance - 1
    scores = split(f"{name}/query", a) @ split(f"{name}/key", others).transpose(0, 2, 1)
    scores = scores / width**0.5 + p["bias"][index].transpose(2, 0, 1)
    return merge(name, softmax(scores), split(f"{name}/value", others))

  def swiglu(name, a):
    gate = a @ p[f"{name}/gate/kernel"]
    return (gate * sigmoid(gate) * (a @ p[f"{name}/up/kernel"])) @ p[f"{name}/down/kernel"]

  def among(a, offset):
    q, k, v = (split(f"among/{part}", a) for part in ("query", "key", "value"))
    weights = np.zeros((case.heads, size, size), q.dtype)
    for t in range(size):
      places = t - np.arange(t + 1) + (offset if case.released else 0)
      angles = places[:, None] / 10_000.0 ** (np.arange(0, case.dim, 2) / case.dim)
      r = split("places", np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
      by_content, by_place = (q[:, t] + p[f"{kind}_bias"] for kind in ("content", "place"))
      scores = (by_content[:, None] * k[:, : t + 1] + by_place[:, None] * r).sum(-1)
      weights[:, t, : t + 1] = softmax(scores / width**0.5)
    return merge("among", weights, v)

  for offset in range(0, len(x), size):
    places = offset + np.arange(size)
    told = places[::-1] if case.released else places
    h = sub(0, x[offset : offset + size], functools.partial(among, offset=offset))
    h = sub(
      1, h, functools.partial(cross, "reading", others=memory, apart=told[:, None] - times[None])
    )
    h = sub(2, h, lambda a: swiglu("feed_forward", a))
    new = sub(
      3, memory, functools.partial(cross, "writing", others=h, apart=times[:, None] - told[None])
    )
    new = sub(4, new, lambda a: swiglu("memory_feed_forward", a))
    empty = np.flatnonzero(times < 0)
    slot = empty[0] if len(empty) else int(times.argmin())
    blend = 1.0 if len(empty) and not case.released else case.blend
    memory, times = memory.copy(), times.copy()
    memory[slot] = blend * new[slot] + (1 - blend) * memory[slot]
    times[slot] = places[-1]
    outputs.append(h)
  return np.concatenate(outputs), memory, times


def loss(case, p, weights):
  y, memory, _ = run(case, p)
  return (y * weights["y"]).sum() + (memory * weights["memory"]).sum()


def main():
  found = {}
  for seed, (name, case) in enumerate(CASES.items()):
    arrays, weights = draw(case, np.random.default_rng(seed))
    y, memory, times = run(case, {key: a.astype(np.float64) for key, a in arrays.items()})
    found |= {f"{name}|y": y, f"{name}|memory": memory, f"{name}|times": times}
    found |= {f"{name}|weights|{key}": a for key, a in weights.items()}
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    if not case.released:
      continue
    grads = gradients(lambda p, case=case, w=weights: loss(case, p, w), arrays)
    found |= {f"{name}|grad|{key}": a for key, a in grads.items()}
  path = pathlib.Path(__file__).with_suffix(".npz")
  np.savez_compressed(path, **{name: a.astype(np.float32) for name, a in found.items()})


if __name__ == "__main__":
  main()
