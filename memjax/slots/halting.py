"""When to stop hopping: a policy that watches the attention, and the losses that train it.

B batch, H heads, N slots, T hops at most, Z width of the policy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from memjax.core import checks
from memjax.core.layers import Linear
from memjax.slots.gates import gru

_LEAST = 1e-6  # overlap of two attentions that share no slot


def distance(p: jax.Array, q: jax.Array) -> jax.Array:
  """Bhattacharyya distance `-log sum_i sqrt(p_i q_i)` of weights `[..., N]`; at most 13.8."""
  return -jnp.log(jnp.maximum(jnp.sum(jnp.sqrt(p * q), axis=-1), _LEAST))


class Policy(nnx.Module):
  """Whether to halt after a hop, and what reward is then to be expected.

      s_t = [w_t, distance(w_t, w_{t-1}), one_hot(t)],  z_t = GRU(z_{t-1}, s_t)
      p_t = sigmoid(MLP(z_t)),  v_t = MLP'(z_t)

  The attention is taken as it is: no gradient goes into it. An MLP has one layer of ReLU.

  Args:
    heads, slots, hops: H, N and T.
    width: Z.
    bias: of p_t before the sigmoid, at first.
  """

  def __init__(
    self, heads: int, slots: int, hops: int, width: int, *, bias: float, param_dtype=jnp.float32,
    rngs: nnx.Rngs,
  ):  # fmt: skip
    checks.positive(heads=heads, slots=slots, hops=hops, width=width)
    self.hops, self.width = hops, width
    make: dict[str, Any] = {
      "bias": True,
      "axes": ("memory", "memory"),
      "param_dtype": param_dtype,
      "rngs": rngs,
    }
    self.update = Linear(heads * (slots + 1) + hops, 3 * width, **make)
    self.old = Linear(width, 3 * width, **make)
    self.halt, self.value = Linear(width, width, **make), Linear(width, width, **make)
    start = nnx.initializers.constant(bias)
    self.halt_out = Linear(width, 1, bias_init=start, **make)
    self.value_out = Linear(width, 1, **make)

  def first(self, batch: int) -> jax.Array:
    return jnp.zeros((batch, self.width), jnp.float32)

  def __call__(self, attention, before, hop, z) -> tuple[jax.Array, jax.Array, jax.Array]:
    """After hop `hop`, an int from 0: the logit of p_t `[B]`, v_t `[B]`, z_t `[B, Z]`.

    Args:
      attention, before: w_t and w_{t-1}, `[B, H, N]`.
      z: `[B, Z]`.
    """
    batch = z.shape[0]
    when = jnp.broadcast_to(jax.nn.one_hot(hop, self.hops)[None], (batch, self.hops))
    seen = [attention.reshape(batch, -1), distance(attention, before), when]
    seen = jax.lax.stop_gradient(jnp.concatenate(seen, axis=-1))
    z = gru(self.update(seen), self.old(z), z)
    logit = self.halt_out(jax.nn.relu(self.halt(z)))[:, 0]
    return logit, self.value_out(jax.nn.relu(self.value(z)))[:, 0], z


def choose(logits: jax.Array, key: jax.Array | None) -> jax.Array:
  """After how many hops `[B]` int32, 1 to T, to halt: logits `[T, B]` of halting after each.

  Drawn with a key; without one at the first at which halting is the likelier. The last halts
  always.
  """
  if key is None:
    halts = logits > 0
  else:
    halts = jax.random.uniform(key, logits.shape) < jax.nn.sigmoid(logits)
  return 1 + jnp.argmax(halts.at[-1].set(True), axis=0).astype(jnp.int32)


class HaltingLosses(NamedTuple):
  """`[B]` float32 each; see `losses`."""

  policy: jax.Array
  value: jax.Array
  hops: jax.Array


def losses(
  logits, values, taken, reward, *, discount: float = 1.0, horizon: int | None = None
) -> HaltingLosses:
  """What trains a policy by the reward where it halted, h; sums over the hops t <= h that it made.

      policy  -sum_t (R_t - v_t) log p(a_t)     REINFORCE; v_t without gradient
      value    sum_t (R_t - v_t)^2
      hops     sum_t (1 - p_t)                  how many it expects to go on after
      R_t = discount^(h - t) reward, or discount^horizon v_{t + horizon} if that comes before h

  a_t is to halt for t = h and to go on before. After the last hop T nothing is decided.

  Args:
    logits, values: `[T, B]`.   taken: h, `[B]`, 1 to T.   reward: `[B]`.
    horizon: None: to the end.
  """
  length = logits.shape[0]
  hop = jnp.arange(1, length + 1)[:, None]
  left, rewards = taken[None] - hop, jax.lax.stop_gradient(reward.astype(jnp.float32))[None]
  returns = discount ** jnp.maximum(left, 0) * rewards
  if horizon is not None and horizon < length:
    later = jnp.pad(values[horizon:], ((0, horizon), (0, 0)))
    returns = jnp.where(left < horizon, returns, discount**horizon * later)
  returns = jax.lax.stop_gradient(returns)
  made, decided = left >= 0, (left >= 0) & (hop < length)
  log_p = jax.nn.log_sigmoid(jnp.where(left == 0, logits, -logits))
  gain = returns - jax.lax.stop_gradient(values)
  return HaltingLosses(
    policy=-jnp.sum(jnp.where(decided, gain * log_p, 0), axis=0),
    value=jnp.sum(jnp.where(made, jnp.square(returns - values), 0), axis=0),
    hops=jnp.sum(jnp.where(decided, jax.nn.sigmoid(-logits), 0), axis=0),
  )
