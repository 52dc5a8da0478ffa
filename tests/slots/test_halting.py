"""The policy that stops hopping, and the losses that train it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.slots import gates, halting


def test_the_distance_of_two_attentions():
  p, q = jnp.asarray([[0.5, 0.5, 0], [1.0, 0, 0]]), jnp.asarray([[0.5, 0.5, 0], [0, 0.5, 0.5]])
  np.testing.assert_allclose(halting.distance(p, q), [0, -np.log(1e-6)], atol=1e-6)
  np.testing.assert_allclose(
    halting.distance(jnp.asarray([0.9, 0.1]), jnp.asarray([0.2, 0.8])),
    -np.log(np.sqrt(0.18) + np.sqrt(0.08)), rtol=1e-6,
  )  # fmt: skip


def test_it_halts_where_it_likes_to_and_always_at_the_end():
  logits = jnp.asarray([[-1.0, 1, -1], [2.0, 3, -1], [-1.0, 2, -9]])
  np.testing.assert_array_equal(halting.choose(logits, None), [2, 1, 3])
  many = jnp.broadcast_to(jnp.asarray([-1.0, 0, -99])[:, None], (3, 4000))
  found = np.bincount(np.asarray(halting.choose(many, jax.random.key(0))), minlength=4)[1:] / 4000
  p = 1 / (1 + np.e)
  # Of 4000 draws: four deviations.
  np.testing.assert_allclose(found, [p, (1 - p) / 2, (1 - p) / 2], atol=0.03)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_the_policys_gradient_is_that_of_the_expected_reward(discount):
  """On average over where it halts, whatever the baseline; the hops' is that of their number."""
  rng = np.random.default_rng(0)
  logits, values = (jnp.asarray(rng.normal(size=(3, 1)), jnp.float32) for _ in range(2))
  reward = jnp.asarray([1.0, 0.0, 1.0])

  def chances(logits):
    p = jax.nn.sigmoid(logits[:, 0]).at[-1].set(1)
    return p * jnp.cumprod(jnp.concatenate([jnp.ones(1), 1 - p[:-1]]))

  @jax.jit
  @jax.jacobian
  def losses(logits):
    three = jnp.arange(1, 4)
    found = halting.losses(
      jnp.tile(logits, (1, 3)), jnp.tile(values, (1, 3)), three, reward, discount=discount
    )
    return found.policy, found.hops

  policy, hops = (jnp.einsum("h,htb->t", chances(logits), a) for a in losses(logits))
  wanted = []
  for t in range(2):  # Q(halt) - Q(go on), times the chance to be at t
    p = np.asarray(jax.nn.sigmoid(logits[:, 0]))
    on = [p[1] * reward[1] + (1 - p[1]) * discount * reward[2], reward[2]][t] * discount
    wanted.append(-np.prod(1 - p[:t]) * p[t] * (1 - p[t]) * (reward[t] - on))
  np.testing.assert_allclose(policy[:2], wanted, rtol=1e-5, atol=1e-6)
  assert policy[2] == 0
  own = np.asarray(jax.nn.sigmoid(logits[:2, 0]))
  reached = np.asarray([1, 1 - own[0]])
  np.testing.assert_allclose(hops[:2], -reached * own * (1 - own), rtol=1e-5)


def test_returns_of_a_horizon_end_in_a_value():
  logits, values = jnp.zeros((4, 2)), jnp.asarray([[0.1, 0.2, 0.3, 0.4]]).T.repeat(2, axis=1)
  found = halting.losses(
    logits, values, jnp.asarray([4, 2]), jnp.asarray([1.0, 1.0]), discount=0.5, horizon=2
  )
  returns = np.array([[0.25 * 0.3, 0.25 * 0.4, 0.5, 1.0], [0.5, 1.0, 0, 0]])
  gain, nats = returns - [0.1, 0.2, 0.3, 0.4], np.log(2)
  np.testing.assert_allclose(
    found.value, [np.sum(gain[0] ** 2), np.sum(gain[1, :2] ** 2)], rtol=1e-5
  )
  np.testing.assert_allclose(
    found.policy, [gain[0, :3].sum() * nats, gain[1, :2].sum() * nats], rtol=1e-5
  )
  np.testing.assert_allclose(found.hops, [1.5, 1.0], rtol=1e-6)


def test_a_policy_tells_hops_apart_and_starts_from_its_bias():
  policy = halting.Policy(2, 3, 4, 5, bias=-2.0, rngs=nnx.Rngs(0))
  w = jnp.full((1, 2, 3), 1 / 3)
  watch = jax.jit(lambda policy, hop: policy(w, w, hop, policy.first(1)))
  (first, _, z), (second, _, _) = watch(policy, 0), watch(policy, 1)
  assert first != second and z.shape == (1, 5)
  policy.halt_out.kernel[...] = jnp.zeros((5, 1))
  np.testing.assert_allclose(watch(policy, 0)[0], -2)


def test_a_gru_is_its_equations():
  new, old, h = (
    np.random.default_rng(i).normal(size=n).astype("f") for i, n in enumerate((6, 6, 2))
  )
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  r, z = sigmoid(new[:2] + old[:2]), sigmoid(new[2:4] + old[2:4])
  expected = (1 - z) * np.tanh(new[4:] + r * old[4:]) + z * h
  np.testing.assert_allclose(gates.gru(*map(jnp.asarray, (new, old, h))), expected, rtol=1e-5)
