"""PEER: specs/parametric.md section 3, and where its gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Stateless, channel, join, replace, split
from memjax.parametric import PEER, ProductKeyMemory, count_usage, usage_metrics

SIZES = {"keys": 4, "heads": 2, "top_k": 3, "query_dim": 4, "query_norm": None}


def make(dim=6, seed=0, **sizes):
  return PEER(dim, **{**SIZES, **sizes}, rngs=nnx.Rngs(seed))


def activations(batch=2, length=5, dim=6, seed=1):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, dim)), jnp.float32)


@jax.jit
def call(memory, x):
  """The output and what was emitted."""
  with channel.collect() as frame:
    y, _ = memory(x, Stateless())
  return y, frame.emitted


def read(memory, x):
  return call(memory, x)[0]


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_all_experts_with_open_gates_are_a_dense_layer(activation):
  """Head h reads row h of the slots whatever the query, sigmoid gates at 1: act(x U^T) V."""
  memory = make(keys=3, heads=3, top_k=3, query_dim=2, gate="sigmoid", activation=activation)
  search = memory.search
  search.query.kernel[...] = jnp.zeros((6, 6))
  search.query.bias[...] = jnp.ones(6)
  search.keys[...] = jnp.full((3, 2, 3, 1), 20.0).at[:, 0, :, 0].add(20 * jnp.eye(3))
  x = activations()
  y, emitted = call(memory, x)
  np.testing.assert_array_equal(np.sort(emitted["ids"], -1), np.broadcast_to(range(9), (2, 5, 9)))
  act = {"gelu": jax.nn.gelu, "relu": jax.nn.relu}[activation]
  want = act(x @ memory.down[...].T) @ memory.up[...]
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_only_experts_that_were_retrieved_have_gradients():
  params, rest = split(make())
  x = activations(1, 1)
  _, emitted = call(join(params, rest), x)
  grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(call(join(p, rest), x)[0]))))(params)
  touched = np.unique(emitted["ids"])
  assert 0 < len(touched) < 16
  for name in ("down", "up"):
    np.testing.assert_array_equal(np.flatnonzero(np.abs(grads[name]).sum(1)), touched, name)


def test_with_one_input_vector_for_all_it_is_product_keys_scaled():
  """act the identity and all u equal: y = <u, x> times the read of the values."""
  memory, x = make(activation="identity"), activations()
  u = jnp.arange(6) / 3 - 1
  memory.down[...] = jnp.broadcast_to(u, (16, 6))
  plain = ProductKeyMemory(6, **SIZES, rngs=nnx.Rngs(0))
  plain.search, plain.values.table = memory.search, memory.up
  want = read(plain, x) * (x @ u)[..., None]
  np.testing.assert_allclose(read(memory, x), want, rtol=1e-5, atol=1e-6)


def test_experts_and_keys_permuted_alike_change_nothing():
  memory, x = make(), activations()
  y = read(memory, x)
  first, second = np.array([2, 0, 3, 1]), np.array([3, 2, 0, 1])
  keys = memory.search.keys[...]
  memory.search.keys[...] = jnp.stack([keys[:, 0, first], keys[:, 1, second]], axis=1)
  slots = (first[:, None] * 4 + second[None]).ravel()
  for table in (memory.down, memory.up):
    table[...] = table[...][slots]
  np.testing.assert_allclose(read(memory, x), y, rtol=1e-5, atol=1e-6)
  memory.down[...] = memory.down[...][slots]
  assert jnp.abs(read(memory, x) - y).max() > 1e-3


def test_heads_that_retrieve_the_same_experts_add():
  memory, x = make(), activations()
  search, single = memory.search, make(heads=1)
  one = slice(0, 4)  # the queries of head 0
  single.search.keys[...] = search.keys[:1]
  single.search.query.kernel[...] = search.query.kernel[:, one]
  single.search.query.bias[...] = search.query.bias[one]
  single.down, single.up = memory.down, memory.up
  search.keys[...] = jnp.tile(search.keys[:1], (2, 1, 1, 1))
  search.query.kernel[...] = jnp.tile(search.query.kernel[:, one], (1, 2))
  search.query.bias[...] = jnp.tile(search.query.bias[one], 2)
  np.testing.assert_allclose(read(memory, x), 2 * read(single, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gradients_equal_those_of_gathered_experts(gate):
  """Values, and gradients of every parameter and of x, against the equations on gathered rows."""
  memory, x = make(gate=gate, query_norm="rms"), activations()
  params, rest = split(memory)

  def mine(params, x):
    y, emitted = call(join(params, rest), x)
    return jnp.sum(jnp.sin(y)), (y, emitted["ids"])

  def plain(params, x, ids):
    search = join(params, rest).search
    q = search.norm(search.query(x).reshape(2, 5, 2, 2, 2))
    halves = jnp.stack([ids // 4, ids % 4], axis=-1).reshape(2, 5, 2, 3, 2)
    scores = jnp.einsum("bthsc,hsnc->bthsn", q, params["search/keys"])
    take = lambda side: jnp.take_along_axis(scores[..., side, :], halves[..., side], -1)  # noqa: E731
    scores = take(0) + take(1)
    g = (jax.nn.softmax if gate == "softmax" else jax.nn.sigmoid)(scores).reshape(2, 5, 6)
    hidden = jax.nn.gelu(jnp.einsum("btd,btjd->btj", x, params["down"][ids]))
    y = jnp.einsum("btj,btjd->btd", g * hidden, params["up"][ids])
    return jnp.sum(jnp.sin(y)), y

  (_, (y, ids)), grads = jax.jit(jax.value_and_grad(mine, (0, 1), has_aux=True))(params, x)
  (_, want), expected = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(params, x, ids)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
  for name, grad in grads[0].items():
    assert jnp.abs(grad).max() > 1e-5, name
    np.testing.assert_allclose(grad, expected[0][name], rtol=1e-4, atol=1e-6, err_msg=name)
  np.testing.assert_allclose(grads[1], expected[1], rtol=1e-4, atol=1e-6)


def test_both_tables_tap_what_they_read():
  """A training step that keeps the tables apart finds two lookups, each by the table's name."""
  memory, x = make(), activations()
  _, emitted = call(memory, x)
  assert {name: sorted(read) for name, read in emitted.items() if name.startswith("touch:")} == {
    "touch:down": ["ids", "layers", "vectors"], "touch:up": ["ids", "layers", "weights"],
  }  # fmt: skip


def test_batch_norm_spreads_the_use_of_experts():
  """Small activations: queries are little more than their bias, unless they are normalised."""

  def used(norm, batch):
    memory = make(32, keys=16, heads=4, top_k=4, query_dim=16, query_norm=norm)
    memory = replace(memory, use_batch=True) if batch else memory
    _, emitted = call(memory, activations(4, 64, 32) * 1e-3)
    return usage_metrics(count_usage(emitted["ids"], emitted["weights"], 256).weight)["used"]

  assert used(None, False) < 0.2 and used("batch", True) > 0.5


def test_initialisation():
  memory = make(64, keys=32, query_dim=16)
  for table in (memory.down, memory.up):
    np.testing.assert_allclose(table[...].std(), 1 / 8, rtol=0.05)
  assert jnp.abs(memory.down[...] - memory.up[...]).max() > 0.1
  assert 0.95 * 0.25 < jnp.abs(memory.search.keys[...]).max() <= 0.25


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"gate": "relu"}, "gate='relu' is not one of 'softmax', 'sigmoid'"),
    ({"activation": "tanh"}, "activation='tanh' is not one of"),
    ({"top_k": 9}, "top_k=9 exceeds keys=4"),
  ],
)
def test_constructor_errors_name_the_argument(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


@functools.partial(jax.jit, static_argnums=1)
def _cast(memory, dtype, x):
  return memory(x.astype(dtype), Stateless())[0]


def test_bfloat16_activations_read_float32_tables():
  memory, x = make(), activations()
  y = _cast(memory, jnp.bfloat16, x)
  assert y.dtype == jnp.bfloat16
  wide = read(memory, x.astype(jnp.bfloat16).astype(jnp.float32))
  assert jnp.median(jnp.abs(y - wide)) < 0.02  # a near tie may choose another slot
