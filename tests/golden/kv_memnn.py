"""Writes kv_memnn.npz: a re-statement in NumPy, question by question, of the authors' key-value
memory network (facebookarchive/MemNN at d7c5f6d, KVmemnn/library: kvmemnn_model.lua,
memnn_model.lua, PositionalEncoder.lua), with gradients.

    python -m tests.golden.kv_memnn
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, softmax

VOCAB, DIM, SLOTS, KEY, VALUE = 9, 5, 4, 3, 2

# name: hops, times, places, a rotation after the last hop, a table of the answers' own
CASES = {
  "plain": (2, False, False, False, False),
  "full": (3, True, True, True, True),
}


def bags(numbers, *shape, least):
  """Bags of `least` to J words, padded with 0."""
  ids = numbers.integers(1, VOCAB, shape)
  return np.where(
    np.arange(shape[-1]) < numbers.integers(least, shape[-1] + 1, (*shape[:-1], 1)), ids, 0
  )


def draw(case, numbers):
  """Weights with the names that the library gives them, and ids."""
  hops, times, _, last, apart = case
  arrays = {"table": numbers.normal(size=(VOCAB + SLOTS * times, DIM))}
  for hop in range(hops - 1 + last):
    arrays[f"rotations/{hop}/kernel"] = 0.5 * numbers.normal(size=(DIM, DIM))
    arrays[f"rotations/{hop}/bias"] = 0.5 * numbers.normal(size=DIM)
  if apart:
    arrays["out"] = numbers.normal(size=(VOCAB, DIM))
  ids = {
    "question": bags(numbers, 2, KEY, least=1),
    "keys": bags(numbers, 2, SLOTS, KEY, least=1),  # the oldest first
    "values": bags(numbers, 2, SLOTS, VALUE, least=0),
    "candidates": bags(numbers, 2, 3, 2, least=1),
  }
  return {name: a.astype(np.float32) for name, a in arrays.items()}, ids


def embed(table, words, time, places):
  """The sum of a list of words' embeddings, each weighted as if the bag had unit length."""
  pairs = [(word, len(words) ** -0.5) for word in words]
  if time is not None:
    pairs.append((VOCAB + time, 1.0))
  total = 0
  for j, (word, weight) in enumerate(pairs, start=1):
    part = j / len(pairs)
    place = (1 - part) - np.arange(1, DIM + 1) / DIM * (1 - 2 * part) if places else 1
    total = total + place * weight * table[word]
  return total


def scores(case, p, ids):
  """Scores of the candidates, `[B, C]`."""
  hops, times, places, last, apart = case
  table, found = p["table"], []
  for question, keys, values, candidates in zip(*ids.values(), strict=True):
    keys = [[int(w) for w in key if w] for key in keys][::-1]  # the last one stored comes first
    values = [[int(w) for w in value if w] for value in values][::-1]
    values = [value or key for key, value in zip(keys, values, strict=True)]
    k, v = (
      np.stack([embed(table, words, i if times else None, places) for i, words in enumerate(side)])
      for side in (keys, values)
    )

    def rotate(q, hop):
      return q @ p[f"rotations/{hop}/kernel"] + p[f"rotations/{hop}/bias"]

    q = embed(table, [int(w) for w in question if w], None, places)
    q = q + softmax(k @ q) @ v
    for hop in range(1, hops):
      q = rotate(q, hop - 1)
      q = q + softmax(k @ q) @ v
    q = rotate(q, hops - 1) if last else q
    answers = p["out"] if apart else table
    labels = [embed(answers, [int(w) for w in c if w], None, False) for c in candidates]
    found.append([q @ label for label in labels])
  return np.array(found)


def loss(case, p, ids):
  """The first candidate is right."""
  return -np.log(softmax(scores(case, p, ids))[:, 0]).sum()


def main():
  found = {}
  for seed, (name, case) in enumerate(CASES.items()):
    arrays, ids = draw(case, np.random.default_rng(seed))
    exact = {key: a.astype(np.float64) for key, a in arrays.items()}
    found |= {f"{name}|ids|{key}": a.astype(np.int32) for key, a in ids.items()}
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    found[f"{name}|scores"] = scores(case, exact, ids).astype(np.float32)
    grads = gradients(lambda p, case=case, ids=ids: loss(case, p, ids), arrays)
    found |= {f"{name}|grad|{key}": a.astype(np.float32) for key, a in grads.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
  main()
