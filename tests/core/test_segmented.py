"""What calls of segment memories share: lengths, counting, resets. Laws run on each memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.core import Context, as_state, leaf, segmented

G = 4


@as_state
class Sums:
  total: jax.Array = leaf()
  filled: jax.Array = leaf()


@functools.partial(jax.jit, static_argnames="filled")
def whole(x, filled=0, **flags):
  """Segments' outputs are the sum of all before them."""

  def step(x, valid, border, context):
    kept = x if valid is None else jnp.where(valid[..., None], x, 0)
    y = jnp.broadcast_to(border.total[:, None, None], x.shape)
    return y, dataclasses.replace(border, total=border.total + jnp.sum(kept, axis=(1, 2)))

  rows, zero = x.shape[0], jnp.zeros(x.shape[0])
  border = Sums(zero, jnp.full(rows, filled, jnp.int32))
  init = Sums(zero + 100, jnp.zeros(rows, jnp.int32))
  return segmented.whole(step, x, border, segment=G, init=init, **flags)


def test_whole_segments_are_counted_reset_and_left_alone():
  x = jnp.ones((2, 3 * G, 1))
  y, border, touched = whole(x)
  assert touched is None
  np.testing.assert_array_equal(y[0, ::G, 0], [0, G, 2 * G])
  reset = jnp.zeros((2, 3 * G), bool).at[0, G].set(True)
  valid = jnp.ones((2, 3 * G), bool).at[1, G : 2 * G].set(False)
  y, border, touched = whole(x, reset=reset, valid=valid)
  np.testing.assert_array_equal(y[:, ::G, 0], [[0, 100, 100 + G], [0, G, G]])
  np.testing.assert_array_equal(border.total, [100 + 2 * G, 2 * G])
  assert touched.tolist() == [True, True] and border.filled.tolist() == [0, 0]
  none = jnp.zeros((2, 3 * G), bool).at[0, 5].set(True)
  assert whole(x, valid=none)[2].tolist() == [True, False]


def test_whole_segments_of_an_open_row_or_with_a_late_reset_are_nan():
  x = jnp.ones((2, 2 * G, 1))
  y, border, _ = whole(x, filled=2)
  assert np.isnan(y).all() and border.filled.tolist() == [-1, -1]
  reset = jnp.zeros((2, 2 * G), bool).at[1, 2].set(True)
  y, border, _ = whole(x, reset=reset)
  assert np.isfinite(y[0]).all() and np.isnan(y[1, 2:]).all() and np.isfinite(y[1, :2]).all()
  assert border.filled.tolist() == [0, -1]


def test_each_segment_has_its_key_and_its_tokens_entries():
  found = []

  def step(x, valid, border, context):
    found.append(context.tokens["at"].shape)
    return jax.random.normal(context.key, x.shape), border

  border = Sums(jnp.zeros(2), jnp.zeros(2, jnp.int32))
  context = Context(key=jax.random.key(0), tokens={"at": jnp.zeros((2, 2 * G), jnp.int32)})
  x = jnp.ones((2, 2 * G, 3))
  y, _, _ = segmented.whole(step, x, border, segment=G, init=border, context=context)
  assert found[0] == (2, G)
  assert not np.allclose(y[:, :G], y[:, G:])


def test_a_part_counts_valid_tokens():
  valid = jnp.array([[1, 0, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1]], bool)
  filled = jnp.array([0, 1, 2, 0, -1], jnp.int32)
  part = segmented.part(filled, None, valid, shape=(5, 3), segment=G)
  assert part.begins.tolist() == [True, False, False, False, False]
  assert part.ends.tolist() == [False, True, False, False, False]
  assert part.filled.tolist() == [2, 0, -1, 0, -1]
  assert part.broken.tolist() == [[False] * 3] * 2 + [[False, False, True], [False] * 3, [True] * 3]
  np.testing.assert_array_equal(part.place[0], [1, 1, 2])


@pytest.mark.parametrize("length", [G + 1, 3 * G - 1])
def test_other_lengths_raise(length):
  with pytest.raises(ValueError, match=rf"T={length} tokens.*segment={G}"):
    segmented.check_length(length, G)
  for fits in (1, G - 1, G, 3 * G):
    segmented.check_length(fits, G)
