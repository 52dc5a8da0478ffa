"""The copy task: its frames, and that the inputs alone determine the answers."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.tasks import copying

sample = jax.jit(copying.sample, static_argnums=1, static_argnames=("shortest", "longest", "bits"))


def test_frames_are_vectors_delimiter_and_answers():
  copies = sample(jax.random.key(0), 40, longest=5, bits=3)
  assert copies.inputs.shape == (40, 11, 4) and copies.targets.shape == (40, 11, 3)
  lengths = set()
  for x, y, mask in zip(*(np.asarray(a) for a in jax.tree.leaves(copies)), strict=True):
    n = int(x[:, 3].argmax())
    lengths.add(n)
    assert x[:, 3].sum() == 1 and x[n, :3].sum() == 0
    np.testing.assert_array_equal(mask, (np.arange(11) > n) & (np.arange(11) <= 2 * n))
    np.testing.assert_array_equal(y[mask], x[:n, :3])
    assert x[n + 1 :].sum() == 0 and y[~mask].sum() == 0
  assert lengths == {1, 2, 3, 4, 5}


def test_wrong_bits_counts_where_answers_are_due():
  copies = sample(jax.random.key(1), 4, shortest=3, longest=3, bits=2)
  right = jnp.where(copies.mask[:, :, None], 2 * copies.targets - 1, 1.0)
  np.testing.assert_array_equal(copying.wrong_bits(right, copies), 0)
  np.testing.assert_array_equal(copying.wrong_bits(-right, copies), 6)


def test_bits_are_fair_and_batches_differ():
  first, second = (sample(jax.random.key(i), 200, shortest=20) for i in (0, 1))
  share = first.targets.sum() / (first.mask.sum() * 8)
  assert abs(share - 0.5) < 0.02
  assert (first.targets != second.targets).any()
