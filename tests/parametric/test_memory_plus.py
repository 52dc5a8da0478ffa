"""MemoryPlus: specs/parametric.md section 2, "how to know that it is right"."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, Stateless, flatten, join, split
from memjax.core.sharding import make_mesh, model_shardings
from memjax.parametric import MemoryPlus, ProductKeyMemory, value_pool
from memjax.training import make_optimizer
from memjax.transformer import FeedForward, LanguageModel, Stack

SIZES = {"keys": 4, "heads": 2, "top_k": 3, "query_dim": 4}


def make(dim=6, seed=0, **sizes):
  return MemoryPlus(dim, **{**SIZES, **sizes}, rngs=nnx.Rngs(seed))


def activations(batch=2, length=5, dim=6, seed=1):
  return jax.random.normal(jax.random.key(seed), (batch, length, dim))


@jax.jit
def read(memory, x, context=None):
  return memory(x, Stateless(), context=context)[0]


def test_with_an_open_gate_it_is_plain_product_keys():
  """W1 = 0, silu(b1) = 1, W2 = I, b2 = 0."""
  plus = make()
  plain = ProductKeyMemory(6, query_norm=None, **SIZES, rngs=nnx.Rngs(0))
  plain.search, plain.values = plus.search, plus.values
  plus.gate.kernel[...] = jnp.zeros((6, 6))
  plus.gate.bias[...] = jnp.full(6, 1.2784645)
  plus.out.kernel[...] = jnp.eye(6)
  plus.out.bias[...] = jnp.zeros(6)
  x = activations()
  np.testing.assert_allclose(read(plus, x), read(plain, x), rtol=1e-5, atol=1e-6)


def test_the_gate_is_silu_of_the_input():
  """All values equal to c: out = (H c silu(x W1 + b1)) W2 + b2; a silu of the read, or one softmax
  over all heads, would give something else."""
  plus, x = make(), activations()
  plus.values.table[...] = jnp.full((16, 6), -0.7)
  into, out = plus.gate, plus.out
  gate = jax.nn.silu(x @ into.kernel[...] + into.bias[...].reshape(1, 1, -1))
  want = (2 * -0.7 * gate) @ out.kernel[...] + out.bias[...].reshape(1, 1, -1)
  np.testing.assert_allclose(read(plus, x), want, rtol=1e-5, atol=1e-6)


def test_a_pool_gets_the_sum_of_the_gradients_of_its_readers():
  """Two layers that share V against the same two with equal values of their own."""
  pool, x = value_pool(16, 6, rngs=nnx.Rngs(9))[...], activations()
  reader = split(make(values="values"))[1]
  own = [split(make(seed=seed)) for seed in (1, 2)]

  def run(layers, context=None):
    h = x
    for layer in layers:
      h = h + layer(h, Stateless(), context=context)[0]
    return jnp.sum(jnp.sin(h))

  def apart(*tables):
    pairs = zip(own, tables, strict=True)
    return run([join({**params, "values/table": v}, rest) for (params, rest), v in pairs])

  def together(pool):
    bare = [{n: a for n, a in params.items() if n != "values/table"} for params, _ in own]
    return run([join(params, reader) for params in bare], Context(shared={"values": pool}))

  value, grad = jax.jit(jax.value_and_grad(together))(pool)
  want, (first, second) = jax.jit(jax.value_and_grad(apart, (0, 1)))(pool, pool)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  np.testing.assert_allclose(grad, first + second, rtol=1e-5, atol=1e-6)
  assert jnp.abs(first).max() > 0 and jnp.abs(second).max() > 0


def language_model(**options):
  memory = functools.partial(MemoryPlus, **SIZES, values="values", **options)
  body = functools.partial(
    Stack, pattern=(functools.partial(FeedForward, hidden=8), memory), repeats=2
  )
  pool = {"values": functools.partial(value_pool, 16, 6)}
  return LanguageModel(11, 6, body=body, shared=pool, rngs=nnx.Rngs(0))


def test_a_language_model_owns_the_pool_once():
  """Parameters grow by keys, Wq, W1, W2 a layer only; both layers reach the pool."""
  model = language_model()
  arrays = flatten(model)
  tables = {name: a.shape for name, a in arrays.items() if 16 in a.shape}
  assert tables == {"shared/values": (16, 6)}
  layer = [name.split("layers/1/")[1] for name in arrays if "layers/1/" in name]
  assert sorted(layer) == [
    "memory/gate/bias", "memory/gate/kernel", "memory/out/bias", "memory/out/kernel",
    "memory/search/keys", "memory/search/query/bias", "memory/search/query/kernel", "norm/scale",
  ]  # fmt: skip
  ids = jax.random.randint(jax.random.key(0), (2, 4), 0, 11)
  params, rest = split(model)

  @jax.jit
  @jax.grad
  def gradient(params):
    model = join(params, rest)
    return jnp.sum(jnp.sin(model(ids, model.init_state(2))[0]))

  assert jnp.abs(gradient(params)["shared/values"]).max() > 0


def test_qk_norm_makes_scores_independent_of_the_scale_of_queries_and_keys():
  """The keys' norm counts too: an implementation that computed it and used the raw keys passed."""
  memory, x = make(qk_norm=True), activations()
  y = read(memory, x)
  search = memory.search
  for array in (search.keys, search.query.kernel, search.query.bias):
    array[...] = array[...] * 50
  np.testing.assert_allclose(read(memory, x), y, rtol=1e-3, atol=1e-4)
  search.key_norm.scale[...] = search.key_norm.scale[...] * 50
  assert jnp.abs(read(memory, x) - y).max() > 1e-2


def test_temperature_flattens_the_weights():
  memory, x = make(temperature=1e6), activations()
  ids, weights = memory.search(x, None, None)
  assert ids.shape == (2, 5, 6)
  np.testing.assert_allclose(weights, 1 / 3, rtol=1e-4)


def test_initialisation():
  """Keys uniform within 1/sqrt(dk) (the full width), Wq Xavier, W1 and W2 Normal(0, 1/sqrt(D))."""
  memory = make(64, keys=32, query_dim=16, value_dim=32)
  search = memory.search
  assert 0.95 * 0.25 < jnp.abs(search.keys[...]).max() <= 0.25
  xavier = (6 / (64 + 32)) ** 0.5
  assert 0.95 * xavier < jnp.abs(search.query.kernel[...]).max() <= xavier
  for kernel in (memory.gate.kernel[...], memory.out.kernel[...]):
    np.testing.assert_allclose(kernel.std(), 1 / 8, rtol=0.1)
  assert jnp.abs(memory.out.bias[...]).max() <= 32**-0.5 < jnp.abs(memory.out.bias[...]).max() * 1.5
  assert make(8, query_dim=None).search.query.kernel.shape == (8, 2 * 4)


def test_a_table_cut_into_columns_gives_the_same_gradients():
  """Columns of V on 4 devices, tokens on 2: forward, dV, dkeys, dWq equal those of one device."""
  mesh = make_mesh({"data": 2, "model": 4})
  memory = MemoryPlus(8, **{**SIZES, "heads": 4}, rngs=nnx.Rngs(0))
  x = activations(2, 6, 8)
  params, rest = split(memory)

  def mean(params, x):
    return jnp.mean(jnp.sin(join(params, rest)(x, Stateless())[0]))

  run = jax.jit(jax.value_and_grad(mean))
  value, grads = run(params, x)
  spread = split(jax.device_put(memory, model_shardings(memory, mesh)))[0]
  rows = jax.NamedSharding(mesh, jax.P("data"))
  value_apart, grads_apart = run(spread, jax.device_put(x, rows))
  assert spread["values/table"].sharding.spec[-1] == "model"
  np.testing.assert_allclose(value, value_apart, rtol=1e-5)
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, grads_apart[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_huge_gradients_of_values_do_not_starve_the_rest():
  """Clipped apart: a million times the gradient of V leaves the other updates as they were."""
  memory = make()
  params, _ = split(memory)
  optimizer = make_optimizer(memory, learning_rate=1e-3, table_learning_rate=1e-2, table_clip=1.0)
  state = optimizer.init(params)

  @jax.jit
  def updates(scale):
    grads = {name: jnp.sin(jnp.arange(a.size)).reshape(a.shape) for name, a in params.items()}
    grads["values/table"] *= scale
    return optimizer.update(grads, state, params)[0]

  plain, huge = updates(1.0), updates(1e6)
  assert any((plain["values/table"] != huge["values/table"]).ravel())
  for name in set(params) - {"values/table"}:
    np.testing.assert_array_equal(plain[name], huge[name], err_msg=name)


@pytest.mark.parametrize(
  ("context", "error", "message"),
  [
    (None, KeyError, r"context.shared\['values'\], which was not given"),
    (Context(shared={"pool": jnp.zeros(2)}), KeyError, r"there: \['pool'\]"),
    (Context(shared={"values": jnp.zeros((9, 6))}), ValueError, r"\[9, 6\].*\[16, 6\]"),
  ],
)
def test_a_missing_or_misshapen_pool_is_named(context, error, message):
  with pytest.raises(error, match=message):
    make(values="values")(activations(), Stateless(), context=context)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"temperature": 0.0}, "temperature=0.0"),
    ({"query_dim": 3}, "query_dim=3"),
    ({"top_k": 9}, "top_k=9 exceeds keys=4"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
