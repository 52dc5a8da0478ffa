"""The store of the last items against lists, and bags of words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.slots import bags, store

SLOTS = 3


@pytest.mark.parametrize("resets", [True, False])
def test_each_item_sees_the_last_ones_that_were_stored(resets):
  rng, length = np.random.default_rng(0), 9
  old, new = rng.integers(1, 99, (2, SLOTS, 2)), rng.integers(1, 99, (2, length, 2))
  count, stored = np.array([2, 3]), rng.random((2, length)) < 0.7
  reset = rng.random((2, length)) < (0.25 if resets else 0)
  flags = jnp.asarray(reset) if resets else None

  @jax.jit
  def run(old, new, count):
    past, seen = store.past(old, new), store.see(count, SLOTS, jnp.asarray(stored), flags)
    windows = jnp.moveaxis(seen.window, 1, 0)
    found = jnp.stack([store.take(past, window) for window in windows], axis=1)
    return found, seen, store.keep(past, seen)

  found, seen, kept = run(old, new, count)
  for b in range(2):
    memory = list(old[b, : count[b]])
    for t in range(length + 1):
      memory = [] if t < length and reset[b, t] else memory
      assert seen.count[b, t] == len(memory)
      expected = np.reshape(memory, (-1, 2))
      np.testing.assert_array_equal(found[b, t, : len(memory)], expected)
      if t < length and stored[b, t]:
        memory = [new[b, t], *memory][:SLOTS]
    filled = np.zeros((SLOTS, 2), int)
    filled[: len(memory)] = np.reshape(memory, (-1, 2))
    np.testing.assert_array_equal(kept[b], filled)


def test_items_are_asked_in_blocks():
  x = jnp.arange(2.0 * 70).reshape(2, 70)
  y, (z,) = store.ask(lambda a, b: (a + b, (a[:, None],)), x, -x)
  np.testing.assert_array_equal(y, jnp.zeros((2, 70)))
  np.testing.assert_array_equal(z[..., 0], x)


@pytest.mark.parametrize("size", [5, bags.SMALL + 1])
def test_bags_are_weighted_sums(size):
  tables = jax.random.normal(jax.random.key(0), (size, 2, 3))
  ids, weights = jnp.asarray([[1, 4, 1], [0, 2, 3]]), jnp.asarray([[1.0, 2, 3], [0, 1, 0.5]])
  expected = np.einsum("njed,nj->ned", np.asarray(tables)[np.asarray(ids)], weights)
  np.testing.assert_allclose(bags.bags(tables, ids, weights), expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(bags.known(ids, 4), [False, True])
