"""Writes memory_networks.npz: the paper's equations (arXiv 1410.3916) in NumPy with its own feature
vectors, three copies of the vocabulary and three features of time, one comparison after another;
with gradients of its loss. There is no code of the authors'.

    python -m tests.golden.memory_networks
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, relu

VOCAB, DIM, SLOTS, WORDS, MARGIN = 7, 4, 5, 3, 0.5
QUESTION = SLOTS  # its time: sentences have 0 to SLOTS - 1

# name: hops, times
CASES = {"timeless": (1, False), "timed": (2, True)}


def draw(case, numbers):
  size = 3 * VOCAB + 3 * case[1]
  arrays = {"U_O": numbers.normal(size=(DIM, size)), "U_R": numbers.normal(size=(DIM, 3 * VOCAB))}
  sentences = numbers.integers(1, VOCAB, (2, SLOTS, WORDS))
  sentences[:, ::2, -1] = 0
  facts = np.stack([numbers.permutation(SLOTS)[: case[0]] for _ in range(2)])
  ids = {
    "sentences": sentences,
    "question": numbers.integers(1, VOCAB, (2, WORDS)),
    "facts": facts,  # in the order of writing, the first one 0
    "answer": numbers.integers(1, VOCAB, 2),
  }
  return {name: a.astype(np.float32) for name, a in arrays.items()}, ids


def bag(words, copy, size):
  """`Phi` of words in one copy of the vocabulary."""
  phi = np.zeros(size)
  for word in words:
    if word:
      phi[copy * VOCAB + word] += 1
  return phi


class Story:
  """One question and its sentences under given weights."""

  def __init__(self, case, p, sentences, question):
    self.p, self.temporal, self.sentences, self.question = p, case[1], sentences, question

  def x(self, facts, size):
    """Feature vectors and times of `[question, facts]`."""
    parts = [(bag(self.question, 0, size), QUESTION)]
    return parts + [(bag(self.sentences[f], 1, size), f) for f in facts]

  def prefer(self, facts, y, other):
    """`s_Ot(x, y, y')`: positive where y is the better fact."""
    u, total = self.p["U_O"], 0
    size = u.shape[1]
    for phi, time in self.x(facts, size):
      right = bag(self.sentences[y], 2, size) - bag(self.sentences[other], 2, size)
      if self.temporal:
        right[3 * VOCAB :] = [time < y, time < other, y < other]
      total = total + (u @ phi) @ (u @ right)
    return total

  def answers(self, facts):
    """`s_R(x, w)` of all words."""
    u = self.p["U_R"]
    left = u @ sum(phi for phi, _ in self.x(facts, u.shape[1]))
    return np.array([left @ (u @ bag([w], 2, u.shape[1])) for w in range(VOCAB)])

  def find(self, hops):
    facts = []
    for _ in range(hops):
      winner = 0
      for f in range(1, SLOTS):
        winner = f if self.prefer(facts, winner, f).real < 0 else winner
      facts.append(winner)
    return facts

  def loss(self, facts, answer):
    total = 0
    for hop, fact in enumerate(facts):
      before = list(facts[:hop])
      for f in range(SLOTS):
        if f != fact:
          total = total + relu(MARGIN - self.prefer(before, fact, f))
          total = total + (relu(MARGIN + self.prefer(before, f, fact)) if self.temporal else 0)
    scores = self.answers(facts)
    for w in range(1, VOCAB):
      if w != answer:
        total = total + relu(MARGIN - scores[answer] + scores[w])
    return total


def stories(case, p, ids):
  return [Story(case, p, s, q) for s, q in zip(ids["sentences"], ids["question"], strict=True)]


def losses(case, p, ids):
  given = zip(stories(case, p, ids), ids["facts"], ids["answer"], strict=True)
  return np.array([story.loss(facts, answer) for story, facts, answer in given])


def main():
  found = {}
  for seed, (name, case) in enumerate(CASES.items()):
    arrays, ids = draw(case, np.random.default_rng(seed))
    exact = {key: a.astype(np.float64) for key, a in arrays.items()}
    places = [story.find(case[0]) for story in stories(case, exact, ids)]
    scores = [s.answers(f) for s, f in zip(stories(case, exact, ids), places, strict=True)]
    found |= {f"{name}|ids|{key}": a.astype(np.int32) for key, a in ids.items()}
    found |= {f"{name}|value|{key}": a for key, a in arrays.items()}
    found |= {f"{name}|found": np.array(places, np.int32), f"{name}|scores": np.float32(scores)}
    found[f"{name}|loss"] = losses(case, exact, ids).astype(np.float32)
    grads = gradients(lambda p, case=case, ids=ids: losses(case, p, ids).sum(), arrays)
    found |= {f"{name}|grad|{key}": a.astype(np.float32) for key, a in grads.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
  main()
