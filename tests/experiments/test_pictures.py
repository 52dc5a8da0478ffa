"""The pictures of docs/memories come from memories that have learned their task."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pictures
from memjax.tasks import two_hop


def test_a_story_in_english():
  world = two_hop.World()
  story = two_hop.Stories(
    np.array([[[1, 7], [2, 10], [1, 4], [3, 5]]]), np.array([[4, 0]]), np.array([7]), np.array([])
  )
  told, asked, answer = pictures.sentences(world, story, 7)
  assert told == [
    "Mary went to the kitchen.", "John went to the hallway.", "Mary took the football.",
    "Sandra took the apple.",
  ]  # fmt: skip
  assert (asked, answer) == ("Where is the football?", "Kitchen.")


def test_training_ends_when_it_is_enough():
  seen = []

  def enough(measure):
    seen.append(measure)
    return len(seen) == 2

  loss = lambda a, key: (jnp.square(a - 3), jnp.abs(a - 3))  # noqa: E731
  model, measure, steps = pictures.train(
    pictures.nnx.Param(jnp.zeros(())), lambda p, key: loss(p[...], key), steps=1000, rate=0.1,
    enough=enough,
  )  # fmt: skip
  assert steps == 2 * pictures.CHUNK and measure == seen[-1] < 0.1
  np.testing.assert_allclose(model[...], 3, atol=0.1)  # the measure is the distance, and below 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "least", "most"),
  [("ntm_copy", 0, 0.05), ("dnc_repeat_copy", 0, 0.1), ("memn2n_hops", 0.95, 1),
   ("elmur_corridor", 0.98, 1), ("pointer_words", 0.95, 1)],
)  # fmt: skip
def test_pictures_show_what_was_learned(name, least, most, tmp_path):
  figure, reached = pictures.PICTURES[name]()
  assert least <= reached <= most
  figure.savefig(tmp_path / "picture.png", dpi=100)
  assert (tmp_path / "picture.png").stat().st_size < 60_000
