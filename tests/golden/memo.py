"""Writes memo.npz: the equations of MEMO (arXiv 2001.10913, whose code is not public) in NumPy,
question by question, with gradients.

    python -m tests.golden.memo
"""

import pathlib

import numpy as np

from tests.golden.complex_step import gradients, layer_norm, relu, sigmoid, softmax

VOCAB, DIM, SLOTS, ITEMS, HEADS, HOPS, WIDTH = 5, 4, 3, 2, 2, 3, 3
COUNT = (3, 2)  # facts of each question
WEIGHTS = (0.7, 0.5, 0.3)  # of the losses of policy, value and hops
DISCOUNT, HORIZON = 0.9, 2

SEED = 48  # with it both questions are answered after more than a hop


def draw(numbers):
  """Weights with the names that the library gives them, and ids."""
  size = DIM // HEADS
  seen = HEADS * (SLOTS + 1) + HOPS
  shapes = {
    "facts/table": (VOCAB, size), "query/kernel": (ITEMS * size, DIM),
    "facts/key/kernel": ((ITEMS + 1) * size, DIM), "facts/value/kernel": ((ITEMS + 1) * size, DIM),
    "turn": (HEADS, size, size), "out/kernel": (DIM, DIM), "hidden/kernel": (DIM, DIM),
    "answer/kernel": (DIM, VOCAB), "policy/update/kernel": (seen, 3 * WIDTH),
    "policy/update/bias": (3 * WIDTH,), "policy/old/kernel": (WIDTH, 3 * WIDTH),
    "policy/old/bias": (3 * WIDTH,), "policy/halt/kernel": (WIDTH, WIDTH),
    "policy/halt/bias": (WIDTH,), "policy/value/kernel": (WIDTH, WIDTH),
    "policy/value/bias": (WIDTH,), "policy/halt_out/kernel": (WIDTH, 1),
    "policy/halt_out/bias": (1,), "policy/value_out/kernel": (WIDTH, 1),
    "policy/value_out/bias": (1,), "facts/times": (SLOTS, size), "norm/scale": (DIM,),
    "norm/bias": (DIM,),
  }  # fmt: skip
  arrays = {name: numbers.normal(size=shape) for name, shape in shapes.items()}
  ids = {
    "facts": numbers.integers(1, VOCAB, (2, SLOTS, ITEMS)),  # the oldest first
    "question": np.stack([numbers.integers(1, VOCAB, 2), np.zeros(2, int)], axis=1),
    "answer": numbers.integers(0, VOCAB, 2),
  }
  return {name: a.astype(np.float32) for name, a in arrays.items()}, ids


def dense(p, name, x):
  y = x @ p[f"{name}/kernel"]
  return y + p[f"{name}/bias"] if f"{name}/bias" in p else y


def embed(p, items, when=None):
  """The items' embeddings side by side; the time is one item more."""
  parts = [p["facts/table"][i] if i else 0 * p["facts/table"][i] for i in items]
  return np.concatenate(parts + ([] if when is None else [p["facts/times"][when]]))


def answers(p, facts, question):
  """After each hop: the logits of the answers, and w `[H, N]`; facts come the most recent first."""
  cs = [embed(p, fact, i) for i, fact in enumerate(facts)]
  keys = np.stack([dense(p, "facts/key", c) for c in cs]).reshape(len(facts), HEADS, -1)
  values = np.stack([dense(p, "facts/value", c) for c in cs]).reshape(len(facts), HEADS, -1)
  q, found = dense(p, "query", embed(p, question)), []
  for _ in range(HOPS):
    heads, read, w = q.reshape(HEADS, -1), [], []
    for h in range(HEADS):
      u = heads[h] @ p["turn"][h]
      w.append(softmax(keys[:, h] @ u / np.sqrt(DIM // HEADS)))
      read.append(w[-1] @ values[:, h])
    q = dense(p, "out", np.concatenate(read)) + q
    q = layer_norm(q, p["norm/scale"], p["norm/bias"])
    found.append((dense(p, "answer", relu(dense(p, "hidden", q))), np.stack(w)))
  return found


def watch(p, attentions):
  """The policy's probability of halting after each hop, and its value."""
  z, found, before = np.zeros(WIDTH), [], None
  for t, w in enumerate(attentions):
    count = w.shape[1]
    before = np.full(w.shape, 1 / count) if before is None else before
    distance = -np.log(np.sqrt(w * before).sum(axis=1))
    padded = np.pad(w, ((0, 0), (0, SLOTS - count)))
    s = np.concatenate([padded.reshape(-1), distance, np.eye(HOPS)[t]])
    new, old = (np.split(a, 3) for a in (dense(p, "policy/update", s), dense(p, "policy/old", z)))
    r, keep = sigmoid(new[0] + old[0]), sigmoid(new[1] + old[1])
    z = (1 - keep) * np.tanh(new[2] + r * old[2]) + keep * z
    halt = sigmoid(dense(p, "policy/halt_out", relu(dense(p, "policy/halt", z)))[0])
    found.append((halt, dense(p, "policy/value_out", relu(dense(p, "policy/value", z)))[0]))
    before = w
  return found


def taken(watched):
  """How many hops are made: it halts where that is the likelier, and at the end."""
  return next((t + 1 for t, (halt, _) in enumerate(watched) if halt > 0.5), HOPS)


def losses(p, ids, fixed):
  """Rows of answer, policy, value, hops, and how many hops were made. What the losses take without
  gradient, attention and the policy's targets, is made of `fixed`, the weights as they are."""
  rows = []
  given = zip(*(ids[k] for k in ("facts", "question", "answer")), COUNT, strict=True)
  for facts, question, answer, count in given:
    facts = facts[:count][::-1]
    still = answers(fixed, facts, question)
    watched = watch(p, [w for _, w in still])
    known = watch(fixed, [w for _, w in still])
    made = taken(known)
    logits = answers(p, facts, question)[made - 1][0]
    reward = float(np.argmax(still[made - 1][0]) == answer)
    policy = value = hops = 0
    for t in range(made):
      left = made - 1 - t
      if left < HORIZON:
        target = DISCOUNT**left * reward
      else:
        target = DISCOUNT**HORIZON * known[t + HORIZON][1]
      halt, v = watched[t]
      value = value + (target - v) ** 2
      if t < HOPS - 1:
        log_p = np.log(halt if left == 0 else 1 - halt)
        policy = policy - (target - known[t][1]) * log_p
        hops = hops + 1 - halt
    rows.append([-np.log(softmax(logits)[answer]), policy, value, hops, made])
  return np.array(rows)


def main():
  arrays, ids = draw(np.random.default_rng(SEED))
  exact = {key: a.astype(np.float64) for key, a in arrays.items()}
  # The first answer is right, so that there are both rewards.
  facts, question = ids["facts"][0][: COUNT[0]][::-1], ids["question"][0]
  steps = answers(exact, facts, question)
  ids["answer"][0] = steps[taken(watch(exact, [w for _, w in steps])) - 1][0].argmax()
  found = {f"ids|{key}": a.astype(np.int32) for key, a in ids.items()}
  found |= {f"value|{key}": a for key, a in arrays.items()}
  found["losses"] = losses(exact, ids, exact).astype(np.float32)
  grads = gradients(lambda p: (losses(p, ids, exact)[:, :4] @ (1, *WEIGHTS)).sum(), arrays)
  found |= {f"grad|{key}": a.astype(np.float32) for key, a in grads.items()}
  np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **found)


if __name__ == "__main__":
  main()
