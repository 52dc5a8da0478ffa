"""N-th farthest against a reader that sorts what it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import nth_farthest
from memjax.tasks.nth_farthest import NthFarthest
from memjax.tasks.task import TEST

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


@pytest.mark.parametrize("order", ["farthest", "code"])
def test_answers_depend_on_distances_alone(order):
  task = NthFarthest(objects=5, features=3, order=order, ids=7)

  def run(index, turn, shuffle):
    batch = task.sample(0, TEST, index)
    if order == "code":  # is solved by the same way
      return batch, batch.targets
    vectors, rest = batch.inputs[..., :3] @ turn, batch.inputs[..., 3:]
    moved = jnp.concatenate([vectors, rest], axis=2)[:, shuffle]
    return batch, jax.vmap(task.oracle)(moved, batch.length)

  rng = np.random.default_rng(0)
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
  batch, solved = jax.jit(run)(jnp.arange(1500), turn, rng.permutation(5))
  due, inputs = np.asarray(batch.targets)[:, -1], np.asarray(batch.inputs)
  np.testing.assert_array_equal(np.asarray(solved)[:, -1], due)

  ids, middle = inputs[..., 3:10].argmax(2), inputs[:, 0, 10:17].argmax(1)
  rank = inputs[:, 0, 17:].argmax(1)
  own = due == middle
  assert not own.any() if order == "farthest" else (own == (rank == 0)).all()
  assert set(rank) == set(range(5)) - ({0} if order == "farthest" else set())
  # By the vectors' lengths, m last or first: as good as the floor, above chance by little.
  lengths = np.linalg.norm(inputs[..., :3], axis=2)
  lengths[ids == middle[:, None]] = -1
  ranked = np.argsort(-lengths if order == "farthest" else lengths, axis=1)
  guess = np.take_along_axis(ids, ranked, axis=1)[np.arange(1500), rank - (order == "farthest")]
  assert abs(np.mean(guess == due) - task.floor) < 3 * (0.25 / 1500) ** 0.5
  assert task.chance < task.floor < 0.6


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="ids=4 must be 0 or at least objects=5"):
    NthFarthest(objects=5, ids=4)
  with pytest.raises(ValueError, match="objects=2 must be at least 3"):
    NthFarthest(objects=2)
