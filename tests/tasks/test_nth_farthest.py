"""N-th farthest against a reader that sorts what it is shown."""

import jax
import numpy as np
import pytest

from memjax.tasks import nth_farthest

OPTIONS = ("objects", "features", "farthest")
sample = jax.jit(nth_farthest.sample, static_argnums=1, static_argnames=OPTIONS)


@pytest.mark.parametrize("farthest", [False, True])
def test_answers_follow_from_what_is_shown(farthest):
  questions = sample(jax.random.key(0), 300, objects=4, features=3, farthest=farthest)
  inputs, answers = np.asarray(questions.inputs), np.asarray(questions.answer)
  assert inputs.shape == (300, 4, 3 + 12)
  ranks = set()
  for shown, answer in zip(inputs, answers, strict=True):
    vectors, ids, reference, rank = np.split(shown, [3, 7, 11], axis=1)
    assert (reference == reference[0]).all() and (rank == rank[0]).all()
    by_id = vectors[np.argsort(ids.argmax(1))]
    far = np.linalg.norm(by_id - by_id[reference[0].argmax()], axis=1)
    assert answer == np.argsort(-far if farthest else far)[rank[0].argmax()]
    ranks.add((reference[0].argmax(), rank[0].argmax()))
  assert len(ranks) == 16 and set(answers) == {0, 1, 2, 3}


def test_objects_come_in_any_order_and_fill_the_cube():
  inputs = np.asarray(sample(jax.random.key(1), 400, objects=3, features=2).inputs)
  orders = {tuple(ids.argmax(1)) for ids in inputs[:, :, 2:5]}
  assert len(orders) == 6 and (inputs[:, :, 2:5].sum(1) == 1).all()
  vectors = inputs[:, :, :2]
  assert vectors.min() < -0.97 and vectors.max() > 0.97 and abs(vectors.mean()) < 0.05


def test_defaults_are_the_papers():
  assert sample(jax.random.key(0), 1).inputs.shape == (1, 8, 16 + 24)
