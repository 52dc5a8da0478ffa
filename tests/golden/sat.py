"""Writes sat.npz: the authors' spatially-aware transformer stated again in NumPy
(junmokane/spatially-aware-transformer at 5ed6f9f: htm/hcam.py, htm/space_model.py, the embeddings
of htm/rb_shortstay/htm_pl.py and htm/ffhq/htm_pl.py, the strategies of
ballet_dataset/ballet_environment_v2.py), with gradients.

    python -m tests.golden.sat

That code with these weights (torch 2.13, float32) differs by less than 2e-6 in outputs and 5e-6 of
the largest in gradients. Its chunks of places have one empty chunk more where a place fills its
last one: no weight.
"""

import dataclasses
import pathlib

import numpy as np
from scipy import special

from tests.golden.complex_step import gradients, layer_norm, relu, softmax

DIM, HEADS, HIDDEN, BATCH, ITEMS, QUERIES = 4, 2, 3, 2, 9, 2
NEVER = -1e38


@dataclasses.dataclass(frozen=True)
class Case:
  policy: str
  chunking: str
  place: str
  grid: tuple[int, int] | None = None
  capacity: int = 6
  places: int = 4
  chunk: int = 2
  top_k: int = 2
  layers: int = 1


CASES = {
  "time": Case("fifo", "time", "sine", capacity=5),
  "first": Case("lifo", "time", "learned", (2, 2)),
  "rare": Case("mvfo", "place", "sine", (2, 2)),
  "often": Case("lvfo", "place", "fourier", layers=2),
}


def kept(policy, places, capacity, count):
  """Which items of a stream `places [T]` are kept, in the order of time."""
  if policy == "fifo":
    return list(range(len(places)))[-capacity:]
  if policy == "lifo":
    return list(range(len(places)))[:capacity]
  number, queues = np.zeros(count, int), [[] for _ in range(count)]
  for item, place in enumerate(places):
    if item >= capacity:
      if policy == "lvfo":
        gone = np.argmin(np.where(number == 0, 1000, number))
      else:
        gone = np.argmax(np.where(number == 0, -1000, number))
      number[gone] -= 1
      queues[gone].pop(0)
    number[place] += 1
    queues[place].append(item)
  return sorted(sum(queues, []))


def sines(index, count):
  """Rows `index` of a table of `count` sinusoids, of which the last one is that of 0."""
  angles = (count - 1 - np.asarray(index))[:, None] * 1e4 ** (-np.arange(0, DIM, 2) / DIM)
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def embed(case, p, places):
  if case.place == "fourier":
    angles = places[:, None] @ p["place/rates"]
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(DIM)
    h = waves @ p["place/inner/kernel"] + p["place/inner/bias"]
    h = h * (1 + special.erf(h / np.sqrt(2))) / 2
    return h @ p["place/outer/kernel"] + p["place/outer/bias"]
  if case.grid is None:
    return sines(places, case.places)
  rows, columns = case.grid
  y, x = places // columns + columns, places % columns
  if case.place == "learned":
    return (p["place/table"][y] + p["place/table"][x]) / 2
  return (sines(y, rows + columns) + sines(x, rows + columns)) / 2


def chunks(case, times, places):
  """Places in the list of kept items, in chunks; -1 where there is none."""
  if case.chunking == "time":
    flat = [-1] * (-len(times) % case.chunk) + list(range(len(times)))
  else:
    flat = []
    for place in range(case.places):
      own = [i for i, at in enumerate(places) if at == place]
      flat += own + [-1] * (-len(own) % case.chunk)
  return np.reshape(flat, (-1, case.chunk))


def split(x):
  return x.reshape(*x.shape[:-1], HEADS, -1)


def attend(p, name, q, memory, seen=None):
  """One attention of `q [Q, D]` to `memory [E, D]`."""
  h, k, v = (split(x @ p[f"{name}/{part}/kernel"]) for x, part in
             ((q, "query"), (memory, "key"), (memory, "value")))  # fmt: skip
  scores = np.einsum("qhd,ehd->hqe", h, k) * (DIM // HEADS) ** -0.5
  if seen is not None:
    scores = np.where(seen, scores, NEVER)
  y = np.einsum("hqe,ehd->qhd", softmax(scores), v).reshape(len(q), DIM)
  return y @ p[f"{name}/out/kernel"] + p[f"{name}/out/bias"]


def read(case, p, name, q, memory, seen):
  """The two-level read of `memory [n, c, D]`."""
  memory = np.where(seen[..., None], memory, 0)
  summary = memory.sum(1) / (seen.sum(1)[:, None] + 1e-5)
  asked = q @ p[f"{name}/query/kernel"] + p[f"{name}/query/bias"]
  keys = summary @ p[f"{name}/key/kernel"] + p[f"{name}/key/bias"]
  scores = np.where(seen.any(1), asked @ keys.T * DIM**-0.5, NEVER)
  rows = []
  for query, score in zip(q, scores, strict=True):
    best = np.argsort(-score.real, kind="stable")[: case.top_k]
    found = [attend(p, f"{name}/inside", query[None], memory[n], seen[n])[0] for n in best]
    rows.append(softmax(score[best]) @ np.stack(found))
  return np.stack(rows)


def run(case, p, places):
  """Outputs `[B, Q, D]`."""
  rows = []
  for items, at, q in zip(p["items"], places, p["queries"], strict=True):
    times = kept(case.policy, at, case.capacity, case.places)
    memory = items[times] + sines(times, ITEMS) + embed(case, p, at[times])
    table = chunks(case, times, at[times])
    for layer in range(case.layers):
      name = f"layers/{layer}"
      norms = [(p[f"{name}/norms/{i}/scale"], p[f"{name}/norms/{i}/bias"]) for i in range(3)]
      x = layer_norm(q, *norms[0])
      q = q + attend(p, f"{name}/among", x, x)
      q = q + read(case, p, f"{name}/reading", layer_norm(q, *norms[1]), memory[table], table >= 0)
      h = relu(layer_norm(q, *norms[2]) @ p[f"{name}/up/kernel"] + p[f"{name}/up/bias"])
      q = q + h @ p[f"{name}/down/kernel"] + p[f"{name}/down/bias"]
    rows.append(q)
  return np.stack(rows)


def draw(case, numbers):
  """Weights with the names that the library gives them, items and queries."""
  p = {}

  def dense(name, a, b, bias=True):
    p[f"{name}/kernel"] = numbers.normal(size=(a, b)) / a**0.5
    if bias:
      p[f"{name}/bias"] = 0.3 * numbers.normal(size=b)

  for layer in range(case.layers):
    name = f"layers/{layer}"
    for inner in (f"{name}/among", f"{name}/reading/inside"):
      for part in ("query", "key", "value"):
        dense(f"{inner}/{part}", DIM, DIM, bias=False)
      dense(f"{inner}/out", DIM, DIM)
    dense(f"{name}/reading/query", DIM, DIM)
    dense(f"{name}/reading/key", DIM, DIM)
    dense(f"{name}/up", DIM, HIDDEN)
    dense(f"{name}/down", HIDDEN, DIM)
    for index in range(3):
      p[f"{name}/norms/{index}/scale"] = 1 + 0.3 * numbers.normal(size=DIM)
      p[f"{name}/norms/{index}/bias"] = 0.3 * numbers.normal(size=DIM)
  if case.place == "learned":
    assert case.grid is not None
    p["place/table"] = numbers.normal(size=(sum(case.grid), DIM))
  if case.place == "fourier":
    p["place/rates"] = numbers.normal(size=(1, DIM // 2))
    dense("place/inner", DIM, DIM)
    dense("place/outer", DIM, DIM)
  p["items"] = numbers.normal(size=(BATCH, ITEMS, DIM))
  p["queries"] = numbers.normal(size=(BATCH, QUERIES, DIM))
  return {name: a.astype(np.float32) for name, a in p.items()}


def flat(arrays):
  """All arrays in one: hundreds of small ones would make a large file."""
  return np.concatenate([a.ravel() for a in arrays.values()])


def unpack(names, values, shapes):
  """`flat` undone: arrays by name, of these shapes."""
  ends = np.cumsum([np.prod(shapes[name], dtype=int) for name in names])
  parts = np.split(values, ends[:-1])
  return {k: part.reshape(shapes[k]) for k, part in zip(names, parts, strict=True)}


def main():
  found = {}
  for seed, (name, case) in enumerate(CASES.items(), 12):
    numbers = np.random.default_rng(seed)
    p, places = draw(case, numbers), numbers.integers(0, case.places, (BATCH, ITEMS))
    weights = numbers.normal(size=(BATCH, QUERIES, DIM)).astype(np.float32)

    def loss(p, case=case, places=places, weights=weights):
      return (run(case, p, places) * weights).sum()

    y = run(case, {k: a.astype(np.float64) for k, a in p.items()}, places)
    grads = gradients(loss, p)
    found |= {f"{name}|names": np.asarray(list(p)), f"{name}|y": y, f"{name}|weights": weights}
    found |= {f"{name}|value": flat(p), f"{name}|grad": flat(grads), f"{name}|places": places}
  numbers = np.random.default_rng(9)
  streams = np.minimum(numbers.integers(0, 9, (4, 40)), 4)  # place 4 is visited most
  found["streams"] = streams
  for policy in ("fifo", "lifo", "lvfo", "mvfo"):
    found[f"kept|{policy}"] = np.asarray([kept(policy, places, 8, 5) for places in streams])
  dtypes = {"f": np.float32, "i": np.int32}
  saved = {k: a.astype(dtypes.get(a.dtype.kind, a.dtype)) for k, a in found.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), allow_pickle=False, **saved)


if __name__ == "__main__":
  main()
