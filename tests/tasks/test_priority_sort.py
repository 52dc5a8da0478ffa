"""The priority sort task: an oracle that reads the inputs alone gives every target."""

import jax
import numpy as np
import pytest

from memjax.tasks import priority_sort


def test_the_most_urgent_vectors_are_due_in_order():
  copies = jax.jit(lambda key: priority_sort.sample(key, 40, vectors=7, due=5, bits=3))(
    jax.random.key(0)
  )
  assert copies.inputs.shape == (40, 13, 5) and copies.targets.shape == (40, 13, 3)
  priorities = []
  for x, y, mask in zip(*(np.asarray(a) for a in jax.tree.leaves(copies)), strict=True):
    np.testing.assert_array_equal(mask, np.arange(13) > 7)
    np.testing.assert_array_equal(x[:, 4], np.arange(13) == 7)
    assert np.all(x[7:, :4] == 0) and len(set(x[:7, 3])) == 7
    wanted = x[np.argsort(-x[:7, 3])[:5], :3]
    np.testing.assert_array_equal(y[8:], wanted)
    assert np.all(y[:8] == 0) and set(np.unique(x[:7, :3])) <= {0, 1}
    priorities.append(x[:7, 3])
  assert abs(np.mean(priorities)) < 0.15 and abs(np.std(priorities) - 3**-0.5) < 0.05


def test_more_due_than_there_are_is_refused():
  with pytest.raises(ValueError, match=r"due=5 must lie in 1\.\.vectors=4"):
    priority_sort.sample(jax.random.key(0), 2, vectors=4, due=5)
