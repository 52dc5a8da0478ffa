"""Episodes of new classes: their frames, and what can be known at which sample."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.tasks import one_shot


def test_samples_labels_and_times():
  make = jax.jit(lambda key: one_shot.sample(key, 8, classes=3, times=4, dim=16))
  episodes = make(jax.random.key(0))
  assert episodes.inputs.shape == (8, 12, 19)
  x, late = np.split(np.asarray(episodes.inputs), [16], axis=-1)
  labels, times = np.asarray(episodes.labels), np.asarray(episodes.times)
  assert late[:, 0].sum() == 0
  np.testing.assert_array_equal(late[:, 1:], np.eye(3)[labels[:, :-1]])
  for row, label, count in zip(x, labels, times, strict=True):
    for c in range(3):
      np.testing.assert_array_equal(count[label == c], [1, 2, 3, 4])
    gaps = np.linalg.norm(row[:, None] - row[None], axis=-1)
    same = label[:, None] == label[None]
    assert gaps[same].max() < gaps[~same].min()  # the noise hides no class
  assert len({tuple(label) for label in labels}) == 8
  assert np.linalg.norm(x[0].mean(0) - x[1].mean(0)) > 1  # classes of their own


def test_accuracy_is_told_apart_by_times():
  episodes = one_shot.sample(jax.random.key(1), 4, classes=3, times=4)
  right = jax.nn.one_hot(episodes.labels, 3)
  wrong_first = jnp.where(episodes.times[:, :, None] == 1, -right, right)
  np.testing.assert_allclose(one_shot.accuracy(wrong_first, episodes, 4), [0, 1, 1, 1])
