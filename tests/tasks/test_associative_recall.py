"""The associative recall task: its frames, and that the inputs alone determine the answers."""

import jax
import numpy as np
import pytest

from memjax.tasks import associative_recall


def test_frames_are_items_a_query_and_the_item_after_it():
  make = jax.jit(lambda key: associative_recall.sample(key, 60, most=4, vectors=2, bits=5))
  copies = make(jax.random.key(0))
  assert copies.inputs.shape == (60, 18, 7) and copies.targets.shape == (60, 18, 5)
  cases = set()
  for x, y, mask in zip(*(np.asarray(a) for a in jax.tree.leaves(copies)), strict=True):
    m, t = int(x[:, 5].sum()), np.arange(18)
    np.testing.assert_array_equal(x[:, 5], (t < 3 * m) & (t % 3 == 0))
    np.testing.assert_array_equal(x[:, 6], (t == 3 * m) | (t == 3 * m + 3))
    assert x[x[:, 5:].sum(1) > 0, :5].sum() == 0 and x[3 * m + 4 :].sum() == 0
    np.testing.assert_array_equal(mask, (t > 3 * m + 3) & (t <= 3 * m + 5))
    items = [x[3 * i + 1 : 3 * i + 3, :5] for i in range(m)]
    query, answer = x[3 * m + 1 : 3 * m + 3, :5], y[3 * m + 4 : 3 * m + 6]
    fits = [
      i for i in range(m - 1)
      if np.array_equal(items[i], query) and np.array_equal(items[i + 1], answer)
    ]  # fmt: skip
    assert fits and y[~mask].sum() == 0
    cases.add((m, fits[0]))
  assert cases == {(m, i) for m in (2, 3, 4) for i in range(m - 1)}


def test_one_item_has_no_successor():
  with pytest.raises(ValueError, match="fewest=1, most=3 must satisfy"):
    associative_recall.sample(jax.random.key(0), 2, fewest=1, most=3)
