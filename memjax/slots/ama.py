"""An adaptive memory allocator: a small network that learns which strategy of forgetting fits a
task ("Spatially-Aware Transformer for Embodied Agents", Cho, Yoon, Ahn 2024, arXiv 2402.15160).

B batch, K tasks or numbers that describe one, A policies.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks
from memjax.core.layers import Linear


class AdaptiveMemoryAllocator(nnx.Module):
  """Values of strategies for a task, `Q = W2 relu(W1 task + b1) + b2`, learned as a bandit's.

  One choice an episode: `choose` before it, the memory writes with that policy and answers, and

      r = -(loss of the answer),  L_Q = mean (stop_gradient(r) - Q[a])^2

  The paper trains task loss + 0.1 L_Q, with epsilon falling from 1 to 0.2 over 200,000 steps
  (`optax.linear_schedule(1.0, 0.2, 200_000)`), and takes the best policy at test. Nothing of the
  memory's parameters gets a gradient of L_Q, and nothing of these one of the task loss.

  Args:
    tasks: K, ids 0..K-1, or numbers of a description.
    policies: A; the first four of `ledger.POLICIES`, whose ids it chooses, are the paper's.
    hidden: units of the hidden layer.
  """

  def __init__(
    self, tasks: int, *, policies: int = 4, hidden: int = 64, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(tasks=tasks, policies=policies, hidden=hidden)
    self.tasks, self.policies = tasks, policies
    make = {"bias": True, "param_dtype": param_dtype, "rngs": rngs}
    self.up = Linear(tasks, hidden, axes=("embed", "mlp"), **make)
    self.down = Linear(hidden, policies, axes=("mlp", "embed"), **make)

  def __call__(self, task: jax.Array) -> jax.Array:
    """Values `[B, A]` float32 of the policies for tasks `[B]` int, or descriptions `[B, K]` float.

    An id outside 0..K-1 gives NaN.
    """
    return self.down(jax.nn.relu(self.up(self._describe(task))))

  def choose(self, task: jax.Array, *, epsilon=0.0, key: jax.Array | None = None) -> jax.Array:
    """Policies `[B]` int32: the best, or with probability `epsilon`, which needs a key, any."""
    best = jnp.argmax(self(task), axis=1).astype(jnp.int32)
    if key is None:
      if not isinstance(epsilon, (int, float)) or epsilon != 0:
        raise ValueError(f"epsilon={epsilon} draws policies at random; give a key")
      return best
    which, any_of = jax.random.split(key)
    drawn = jax.random.randint(any_of, best.shape, 0, self.policies)
    return jnp.where(jax.random.bernoulli(which, epsilon, best.shape), drawn, best)

  def loss(self, task: jax.Array, policy: jax.Array, reward: jax.Array) -> jax.Array:
    """L_Q of the `policy [B]` that was taken and its `reward [B]`, which gets no gradient."""
    shape = task.shape[:1]
    if tuple(policy.shape) != shape or tuple(reward.shape) != shape:
      got = f"policy {list(policy.shape)}, reward {list(reward.shape)}"
      raise ValueError(f"{got}: both must be [B] = {list(shape)}")
    value = jnp.take_along_axis(self(task), policy[:, None], axis=1)[:, 0]
    return jnp.mean(jnp.square(jax.lax.stop_gradient(reward).astype(jnp.float32) - value))

  def _describe(self, task):
    if jnp.issubdtype(task.dtype, jnp.integer) and task.ndim == 1:
      hot = jax.nn.one_hot(task, self.tasks)
      return jnp.where(((task >= 0) & (task < self.tasks))[:, None], hot, jnp.nan)
    if jnp.issubdtype(task.dtype, jnp.floating) and task.shape[1:] == (self.tasks,):
      return task.astype(jnp.float32)
    raise ValueError(
      f"task is {task.dtype}{list(task.shape)}; it must be ids [B] or float [B, {self.tasks}]"
    )
