"""The hop loop against its equations, and what it does where no slot is filled."""

import jax
import jax.numpy as jnp
import numpy as np

from memjax.core import channel
from memjax.core.usage import measured
from memjax.slots import hops


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_the_loop_is_its_equations():
  u, keys, values = draw(0, 2, 3), draw(1, 2, 4, 3), draw(2, 2, 4, 3)
  other = draw(3, 2, 4, 3)
  filled = jnp.asarray([[True] * 4, [True, False, True, False]])
  memories, expected = [(keys, values), (values, other)], np.array(u)
  got, reads = hops.loop(
    u, memories, lambda s: hops.soft(s, filled), lambda hop, u, o: (hop + 1) * u + o
  )
  for hop, (k, v) in enumerate(memories):
    for b in range(2):
      here = np.flatnonzero(filled[b])
      p = np.exp(k[b][here] @ expected[b])
      expected[b] = (hop + 1) * expected[b] + p / p.sum() @ v[b][here]
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  assert reads == ()


def test_heads_are_leading_axes():
  u, keys, values = draw(0, 2, 5, 3), draw(1, 2, 5, 4, 3), draw(2, 2, 5, 4, 6)
  o, p = hops.read(u, keys, values, jax.nn.softmax)
  for b, h in np.ndindex(2, 5):
    one, _ = hops.read(u[b, h], keys[b, h], values[b, h], jax.nn.softmax)
    np.testing.assert_allclose(o[b, h], one, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)


def test_without_a_slot_nothing_is_read_and_gradients_are_finite():
  filled = jnp.asarray([[False, False], [False, True]])
  p, grad = jax.jvp(lambda s: hops.soft(s, filled), [draw(0, 2, 2)], [draw(1, 2, 2)])
  np.testing.assert_array_equal(p, [[0, 0], [0, 1]])
  assert jnp.isfinite(grad).all()


def test_hops_are_measured_apart():
  u, keys = draw(0, 1, 3), draw(1, 1, 4, 3)
  with channel.collect(measure=True) as frame:
    _, reads = hops.loop(u, [(keys, keys)] * 2, jax.nn.softmax, lambda hop, u, o: u + 9 * o)
    hops.measure([p[:, None] for p in reads], None)
  found = measured(frame.emitted)
  for hop, p in enumerate(reads):
    np.testing.assert_allclose(found[f"hop{hop}"]["read_peak"].value, p.max(), rtol=1e-6)
