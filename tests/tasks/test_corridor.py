"""Corridors: what a step shows, and that pieces are parts of the whole."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.tasks import corridor


def test_the_cue_stands_at_the_entrance_and_the_junction_at_the_end():
  corridors = corridor.sample(jax.random.key(0), 50, (3, 5))
  x = np.asarray(corridor.steps(corridors, 0, 6))
  np.testing.assert_array_equal(x[:, 0, 0], corridors.cue)
  assert (x[:, 1:, 0] == 0).all() and (x[:, :, 1].sum(axis=1) == 1).all()
  np.testing.assert_array_equal(x[:, :, 1].argmax(axis=1) + 1, corridors.length)
  assert set(np.asarray(corridors.length)) == {3, 5} and set(np.asarray(corridors.cue)) == {-1, 1}
  np.testing.assert_array_equal(corridors.answer, (np.asarray(corridors.cue) + 1) // 2)


def test_pieces_are_parts_of_the_whole():
  corridors = corridor.sample(jax.random.key(1), 4, (7, 8))
  piece = jax.jit(corridor.steps, static_argnums=2)
  pieces = [piece(corridors, jnp.int32(first), 2) for first in (0, 2, 4, 6)]
  np.testing.assert_array_equal(jnp.concatenate(pieces, 1), corridor.steps(corridors, 0, 8))
