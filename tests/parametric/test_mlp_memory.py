"""MLPMemory, its loss and the interpolation: specs/parametric.md section 7."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Stateless, flatten, join, replace, split
from memjax.core.layers import RMSNorm
from memjax.parametric import MLPMemory, base_states, interpolate, knn_teacher, mlp_memory_loss
from memjax.transformer import FeedForward, LanguageModel, Stack

VOCAB = 11


def make(layers=3, **options):
  return MLPMemory(6, layers=layers, vocab=VOCAB, hidden=8, **options, rngs=nnx.Rngs(0))


def states(batch=2, length=5, seed=1):
  return jax.random.normal(jax.random.key(seed), (batch, length, 6))


def distribution(seed, shape=(2, 5, VOCAB)):
  return jax.nn.softmax(3 * jax.random.normal(jax.random.key(seed), shape))


@jax.jit
def call(memory, x):
  y, _ = memory(x, Stateless())
  return y, memory.logits(y)


def test_tokens_are_not_mixed():
  """Permuting tokens permutes outputs; one position alone gives what it gives in the batch."""
  memory, x = make(), states()
  y, logits = call(memory, x)
  order = jnp.array([3, 0, 4, 1, 2])
  np.testing.assert_allclose(call(memory, x[:, order])[0], y[:, order], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(call(memory, x[:1, 2:3])[1], logits[:1, 2:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_equations(gated):
  """u + MLP(norm(u)), block after block, by numpy."""
  options = {"activation": "relu", "gated": gated}
  memory = make(2, norm=RMSNorm, bias=False, **options) if gated else make(2, **options)
  memory = replace(memory, temperature=2.0)
  arrays, x = {k: np.asarray(a) for k, a in flatten(memory).items()}, np.asarray(states())

  def norm(u, name):
    centred = u if gated else u - u.mean(-1, keepdims=True)
    eps = 1e-6 if gated else 1e-5
    out = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
    return out * arrays[f"{name}/scale"] + (0 if gated else arrays[f"{name}/bias"])

  def linear(h, name):
    return h @ arrays[f"{name}/kernel"] + (0 if gated else arrays[f"{name}/bias"])

  for i in range(2):
    h = norm(x, f"layers/{i}/norm")
    up = linear(h, f"layers/{i}/up")
    inner = np.maximum(linear(h, f"layers/{i}/gate"), 0) * up if gated else np.maximum(up, 0)
    x = x + linear(inner, f"layers/{i}/down")
  u = norm(x, "norm")
  y, logits = call(memory, states())
  np.testing.assert_allclose(y, u, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(logits, u @ arrays["head"] / 2, rtol=1e-4, atol=1e-5)


def test_loss_limits():
  """alpha = 1 with a one-hot teacher is cross-entropy, alpha = 0 whatever the teacher."""
  logits = call(make(), states())[1]
  targets = jax.random.randint(jax.random.key(3), (2, 5), 0, VOCAB)
  one_hot = jax.nn.one_hot(targets, VOCAB)
  ce = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
  np.testing.assert_allclose(mlp_memory_loss(logits, one_hot, targets, alpha=1), ce, rtol=1e-5)
  loss = mlp_memory_loss(logits, distribution(4), targets, alpha=0)
  np.testing.assert_allclose(loss, ce, rtol=1e-5)
  exact = mlp_memory_loss(jnp.log(one_hot + 1e-30), one_hot, targets, alpha=0.4)
  np.testing.assert_allclose(exact, 0, atol=1e-5)


def test_loss_is_the_divergence_from_the_teacher():
  """KL(teacher || memory), not the other way round."""
  p, q = distribution(4), distribution(5)
  targets = jnp.zeros((2, 5), int)
  want = jnp.mean(jnp.sum(p * jnp.log(p / q), -1))
  got = mlp_memory_loss(jnp.log(q), p, targets, alpha=1)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert abs(want - jnp.mean(jnp.sum(q * jnp.log(q / p), -1))) > 1e-2


def test_padding_counts_neither_in_the_loss_nor_in_its_gradient():
  logits, teacher = jnp.log(distribution(5)), distribution(4)
  targets, valid = jnp.ones((2, 5), int), jnp.arange(5)[None] < jnp.array([[3], [0]])
  bad = jnp.where(valid[..., None], logits, jnp.nan)
  value, grad = jax.value_and_grad(mlp_memory_loss)(
    bad, jnp.where(valid[..., None], teacher, jnp.nan), targets, valid=valid
  )
  want = mlp_memory_loss(logits[:1, :3], teacher[:1, :3], targets[:1, :3])
  np.testing.assert_allclose(value, want, rtol=1e-6)
  np.testing.assert_array_equal(grad[~valid], 0)
  assert mlp_memory_loss(bad, teacher, targets, valid=jnp.zeros((2, 5), bool)) == 0


def test_interpolation_limits_and_sum():
  memory, model = jnp.log(distribution(4)), jnp.log(distribution(5))
  np.testing.assert_allclose(interpolate(memory, model, 0.0), model, rtol=1e-6)
  np.testing.assert_allclose(interpolate(memory, model, 1.0), memory, rtol=1e-6)
  mixed = jnp.exp(interpolate(memory, model, 0.25))
  np.testing.assert_allclose(mixed, 0.25 * distribution(4) + 0.75 * distribution(5), rtol=1e-5)
  np.testing.assert_allclose(mixed.sum(-1), 1, rtol=1e-5)


def test_interpolation_where_the_memory_has_no_mass():
  none, model = jnp.full(3, -jnp.inf), jnp.log(jnp.array([0.5, 0.25, 0.25]))
  np.testing.assert_allclose(interpolate(none, model, 0.25), model + jnp.log(0.75), rtol=1e-6)
  np.testing.assert_array_equal(interpolate(none, model, 1.0), -1e4)
  grad = jax.grad(lambda m, w: jnp.sum(interpolate(none, m, w)))(model, 0.25)
  np.testing.assert_allclose(grad, 1, rtol=1e-6)


def test_no_gradient_reaches_the_base_model():
  feed_forward = functools.partial(FeedForward, hidden=8)
  body = functools.partial(Stack, pattern=(feed_forward,), repeats=2)
  model = LanguageModel(VOCAB, 6, body=body, rngs=nnx.Rngs(0))
  ids = jax.random.randint(jax.random.key(0), (2, 6), 0, VOCAB)
  base, base_rest = split(model)
  trained, memory_rest = split(make())

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradients(base, trained):
    model, memory = join(base, base_rest), join(trained, memory_rest)
    h, logits, _ = base_states(model, ids[:, :-1], model.init_state(2))
    keys, values, own = h.reshape(-1, 6), ids[:, 1:].ravel(), jnp.arange(10)
    teacher = knn_teacher(keys, keys, values, vocab=VOCAB, neighbours=4, own=own)
    mine = memory.logits(memory(h, Stateless())[0])
    log_p = interpolate(jax.nn.log_softmax(mine), jax.nn.log_softmax(logits), 0.3)
    return mlp_memory_loss(mine, teacher.reshape(2, 5, VOCAB), ids[:, 1:]) - log_p.mean()

  of_base, of_memory = gradients(base, trained)
  for name, grad in of_base.items():
    np.testing.assert_array_equal(grad, 0, err_msg=name)
  assert all(jnp.abs(grad).max() > 0 for grad in of_memory.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"layers": 0}, "layers=0"),
    ({"activation": "tanh"}, "activation='tanh' is not one of"),
    ({"temperature": -1.0}, "temperature=-1.0"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"alpha": 1.5}, "alpha=1.5"),
    ({"teacher": jnp.zeros((2, 5, 3))}, r"teacher \[2, 5, 3\]"),
    ({"valid": jnp.ones((2, 4), bool)}, r"valid has shape \[2, 4\]"),
  ],
)
def test_loss_errors_name_the_argument(change, message):
  arguments = {
    "logits": jnp.zeros((2, 5, VOCAB)),
    "teacher": distribution(0),
    "targets": jnp.zeros((2, 5), int),
  }
  with pytest.raises(ValueError, match=message):
    mlp_memory_loss(**{**arguments, **change})


@pytest.mark.slow
def test_imitates_a_datastore_that_a_linear_head_cannot():
  """200 contexts, each its own distribution: KL < 0.05 nat; a linear head stays far above."""
  keys = jax.random.split(jax.random.key(0), 2)
  contexts = jax.random.normal(keys[0], (1, 200, 16))
  teacher = jax.nn.softmax(4 * jax.random.normal(keys[1], (1, 200, VOCAB)))
  targets = jnp.zeros((1, 200), int)

  def train(model, logits):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1500))

    @jax.jit
    def run(params, rest, contexts):
      def loss(params):
        return mlp_memory_loss(logits(join(params, rest), contexts), teacher, targets, alpha=1)

      def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

      return jax.lax.scan(step, (params, optimizer.init(params)), None, 1500)[1][-1]

    return float(run(*split(model), contexts))

  memory = MLPMemory(16, layers=3, vocab=VOCAB, rngs=nnx.Rngs(0))
  kl = train(memory, lambda memory, h: memory.logits(memory(h, Stateless())[0]))
  linear = train(memory, lambda memory, h: memory.logits(h))
  print({"memory": kl, "linear": linear})
  assert kl < 0.05 < 0.5 < linear
