"""The allocator: a bandit that learns values of policies and touches nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import join, split
from memjax.slots import AdaptiveMemoryAllocator


def make(**options):
  return AdaptiveMemoryAllocator(3, **({"hidden": 16} | options), rngs=nnx.Rngs(0))


def test_values_and_loss_follow_the_formulas():
  chooser, task = make(), jnp.asarray([2, 0])
  kernels = [np.asarray(a[...]) for a in (chooser.up.kernel, chooser.down.kernel)]
  chooser.down.bias[...] = jnp.asarray([1.0, 2.0, 3.0, 4.0])
  expected = np.maximum(kernels[0][[2, 0]], 0) @ kernels[1] + [1, 2, 3, 4]
  values = jax.jit(lambda chooser, task: chooser(task))
  np.testing.assert_allclose(values(chooser, task), expected, rtol=1e-5)
  np.testing.assert_allclose(values(chooser, np.eye(3, dtype="f")[[2, 0]]), expected, rtol=1e-5)
  policy, reward = jnp.asarray([1, 3]), jnp.asarray([-1.0, -2.0])
  squares = (np.asarray(reward) - expected[[0, 1], [1, 3]]) ** 2
  np.testing.assert_allclose(chooser.loss(task, policy, reward), squares.mean(), rtol=1e-5)
  np.testing.assert_array_equal(chooser.choose(task), expected.argmax(axis=1))
  assert np.isnan(values(chooser, jnp.asarray([3, -1]))).all()


def test_epsilon_is_the_share_of_random_choices():
  chooser = make()
  task = jnp.zeros(4000, jnp.int32)
  choose = jax.jit(lambda epsilon: chooser.choose(task, epsilon=epsilon, key=jax.random.key(0)))
  drawn, best = np.asarray(choose(0.4)), int(choose(0.0)[0])
  shares = np.bincount(drawn, minlength=4) / len(drawn)
  # Of 4000 draws: four deviations, 4 sqrt(0.7 0.3 / 4000).
  np.testing.assert_allclose(shares, np.where(np.arange(4) == best, 0.7, 0.1), atol=0.03)
  np.testing.assert_array_equal(choose(0.0), best)


def test_it_and_the_memory_get_no_gradient_of_each_others_loss():
  chooser, rest = split(make())
  memory, task = jnp.asarray([0.5, -1.0]), jnp.asarray([0, 1])

  def losses(chooser, memory):
    model = join(chooser, rest)
    policy = model.choose(task)
    answer = jnp.square(memory - policy)
    return answer.mean(), model.loss(task, policy, -answer)

  of_answer, of_values = jax.jit(jax.jacrev(losses, (0, 1)))(chooser, memory)
  assert all((g == 0).all() for g in of_answer[0].values()) and (of_answer[1] != 0).any()
  assert any((g != 0).any() for g in of_values[0].values()) and (of_values[1] == 0).all()


@pytest.mark.slow
def test_it_learns_the_best_policy_of_every_task():
  """Noisy rewards; without exploration it stays with the first that it likes."""
  rewards = jnp.asarray(
    [[-1.0, -0.2, -1.0, -1.0], [-0.9, -1.0, -1.0, -0.1], [-0.3, -0.6, -1.0, -1.0]]
  )
  params, rest = split(make(hidden=64))
  optimiser = optax.adam(1e-2)

  @jax.jit
  def train(params, start, end):
    epsilon = optax.linear_schedule(start, end, 200)

    def step(carry, index):
      params, moments = carry
      keys = jax.random.split(jax.random.fold_in(jax.random.key(0), index), 3)
      task = jax.random.randint(keys[0], (32,), 0, 3)
      policy = join(params, rest).choose(task, epsilon=epsilon(index), key=keys[1])
      reward = rewards[task, policy] + 0.3 * jax.random.normal(keys[2], (32,))
      grads = jax.grad(lambda p: join(p, rest).loss(task, policy, reward))(params)
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(400))[0][0]

  explored, greedy = (join(train(params, *ends), rest) for ends in ((1.0, 0.2), (0.0, 0.0)))
  np.testing.assert_array_equal(explored.choose(jnp.arange(3)), [1, 3, 0])
  best = jnp.max(rewards, axis=1)
  # Learned in 400 steps from rewards with noise of 0.3; the next best policy is 0.3 or more below.
  np.testing.assert_allclose(explored(jnp.arange(3)).max(axis=1), best, atol=0.15)
  assert (greedy.choose(jnp.arange(3)) != jnp.asarray([1, 3, 0])).any()


def test_bad_input_is_named():
  chooser = make()
  with pytest.raises(ValueError, match="policies=0"):
    make(policies=0)
  with pytest.raises(ValueError, match="epsilon=0.5 draws .* key"):
    chooser.choose(jnp.zeros(2, jnp.int32), epsilon=0.5)
  with pytest.raises(ValueError, match=r"task is float32\[2, 4\]; .* float \[B, 3\]"):
    chooser(jnp.zeros((2, 4)))
  with pytest.raises(ValueError, match=r"reward \[3\]: both must be \[B\] = \[2\]"):
    chooser.loss(jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32), jnp.zeros(3))
