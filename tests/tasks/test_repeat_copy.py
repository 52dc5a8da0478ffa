"""The repeat copy task: its frames."""

import jax
import numpy as np

from memjax.tasks import repeat_copy


def test_frames_are_flag_vectors_count_repeats_and_end():
  make = jax.jit(lambda key: repeat_copy.sample(key, 60, longest=3, fewest=1, most=3, bits=2))
  copies = make(jax.random.key(0))
  assert copies.inputs.shape == (60, 15, 4) and copies.targets.shape == (60, 15, 3)
  cases = set()
  for x, y, mask in zip(*(np.asarray(a) for a in jax.tree.leaves(copies)), strict=True):
    n = int(x[:, 3].argmax()) - 1
    r = round(float(x[n + 1, 3] * 10))
    cases.add((n, r))
    np.testing.assert_array_equal(x[:, 2], np.arange(15) == 0)
    assert (x[:, 3] > 0).sum() == 1 and x[0, :2].sum() == 0 and x[n + 1 :, :2].sum() == 0
    end = n * (r + 1) + 2
    np.testing.assert_array_equal(mask, (np.arange(15) >= n + 2) & (np.arange(15) <= end))
    np.testing.assert_array_equal(y[n + 2 : end, :2], np.tile(x[1 : n + 1, :2], (r, 1)))
    np.testing.assert_array_equal(y[:, 2], np.arange(15) == end)
    assert y[~mask].sum() == 0 and y[end, :2].sum() == 0
  assert cases == {(n, r) for n in (1, 2, 3) for r in (1, 2, 3)}
