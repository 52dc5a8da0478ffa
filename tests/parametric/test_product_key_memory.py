"""ProductKeyMemory: specs/parametric.md section 1, "how to know that it is right"."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Context, Stateless, channel, join, replace, split
from memjax.parametric import ProductKeyMemory, count_usage, usage_metrics
from memjax.transformer import FeedForward

SIZES = {"keys": 5, "heads": 2, "top_k": 3, "query_dim": 4}


def make(dim=6, seed=0, **sizes):
  return ProductKeyMemory(dim, **{**SIZES, **sizes}, rngs=nnx.Rngs(seed))


def activations(batch=2, length=7, dim=6, seed=1):
  return jax.random.normal(jax.random.key(seed), (batch, length, dim))


@jax.jit
def call(memory, x, valid=None, context=None):
  """The output and what was emitted."""
  with channel.collect() as frame:
    y, _ = memory(x, Stateless(), valid=valid, context=context)
  return y, frame.emitted


def read(memory, x):
  return call(memory, x)[0]


def test_equals_attention_over_all_factored_keys():
  """H = 1, k = n: softmax over the n best of all N = n^2 sums, by numpy."""
  memory, x = make(heads=1, top_k=5, query_norm=None), activations(1)
  y = read(memory, x)
  query = memory.search.query
  q = np.asarray(x[0] @ query.kernel[...] + query.bias[...].reshape(1, -1))
  first, second = np.asarray(memory.search.keys[0])
  scores = (q[:, :2] @ first.T)[:, :, None] + (q[:, 2:] @ second.T)[:, None, :]
  scores = scores.reshape(7, 25)
  smallest = np.sort(scores)[:, -5, None]
  weights = np.where(scores >= smallest, np.exp(scores - scores.max(1, keepdims=True)), 0)
  want = weights / weights.sum(1, keepdims=True) @ np.asarray(memory.values.table[...])
  np.testing.assert_allclose(y[0], want, rtol=1e-5, atol=1e-5)


def test_one_slot_is_read_whatever_the_query():
  memory = make(keys=1, heads=1, top_k=1)
  y = read(memory, activations())
  np.testing.assert_array_equal(y, jnp.broadcast_to(memory.values.table[0], y.shape))


def test_weights_of_a_head_sum_to_one():
  """All rows equal to c: the output is H * c, not c (one softmax over all heads would give c)."""
  memory = make()
  memory.values.table[...] = jnp.full((25, 6), 0.7)
  np.testing.assert_allclose(read(memory, activations()), 1.4, rtol=1e-6)


@pytest.mark.parametrize("norm", [None, "rms", "layer", "batch"])
def test_gradients_of_queries_and_keys_match_finite_differences(norm):
  """They learn through the weights alone: a wrong gradient leaves them where they started."""
  params, rest = split(make(query_norm=norm, query_dim=8))
  x = activations(1, 3)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(params):
    y, emitted = call(join(params, rest), x)
    return jnp.sum(jnp.sin(y)), emitted["ids"]

  loss = jax.jit(loss)
  (_, ids), grads = loss(params)
  for name in ("search/keys", "search/query/kernel"):
    uphill = grads[name] / jnp.linalg.norm(grads[name])
    step = 3e-4 * (jax.random.normal(jax.random.key(3), uphill.shape) + 4 * uphill)
    ahead, behind = (loss({**params, name: params[name] + s})[0] for s in (step, -step))
    for _, near in (ahead, behind):  # where another slot is chosen y jumps: no derivative there
      np.testing.assert_array_equal(np.sort(near), np.sort(ids))
    slope = ahead[0] - behind[0]
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(2 * jnp.sum(grads[name] * step), slope, rtol=1e-2, atol=1e-5)


def test_only_rows_that_were_read_have_a_gradient():
  params, rest = split(make())
  x = activations(1, 2)
  _, emitted = call(join(params, rest), x)
  grad = jax.jit(jax.grad(lambda p: jnp.sum(call(join(p, rest), x)[0])))(params)
  touched = np.unique(emitted["ids"])
  assert 0 < len(touched) < 25
  rows = np.abs(grad["values/table"]).sum(1)
  np.testing.assert_array_equal(np.flatnonzero(rows), touched)


def share_used(scale, **options):
  memory = make(32, keys=16, heads=4, top_k=8, query_dim=16, **options)
  if options["query_norm"] == "batch":
    memory = replace(memory, use_batch=True)
  _, emitted = call(memory, activations(4, 64, 32) * scale)
  return usage_metrics(count_usage(emitted["ids"], emitted["weights"], 256).weight)["used"]


@pytest.mark.parametrize("norm", ["rms", "layer", "batch"])
def test_normalised_queries_use_most_slots_at_the_start(norm):
  assert share_used(1.0, query_norm=norm) > 0.5


def test_badly_scaled_queries_collapse_without_batch_norm():
  """Small activations: queries are little more than their bias, and all tokens read 32 slots."""
  assert share_used(1e-3, query_norm=None) < 0.2
  assert share_used(1e-3, query_norm="batch") > 0.5


def test_value_width_of_its_own():
  memory = make(value_dim=4)
  assert memory.values.table.shape == (25, 4) and memory.out.kernel.shape == (4, 6)
  assert read(memory, activations()).shape == (2, 7, 6)


def test_initialisation():
  """Keys uniform within 1/sqrt(half width), values Normal(0, 1/sqrt(dv)), queries 1/sqrt(D)."""
  memory = make(16, keys=32, query_dim=32, heads=4)
  keys, table, query = memory.search.keys[...], memory.values.table[...], memory.search.query
  assert 0.95 * 0.25 < jnp.abs(keys).max() <= 0.25
  np.testing.assert_allclose(keys.std(), 0.25 / 3**0.5, rtol=0.05)
  np.testing.assert_allclose(table.std(), 0.25, rtol=0.05)
  for array in (query.kernel[...], query.bias[...]):
    assert 0.9 * 0.25 < jnp.abs(array).max() <= 0.25


def test_dropout_needs_a_key_and_keeps_the_mean():
  memory = make(input_dropout=0.1, query_dropout=0.1, value_dropout=0.5)
  memory.values.table[...] = jnp.ones((25, 6))
  x = activations(4, 64)
  np.testing.assert_allclose(read(memory, x), 2, rtol=1e-6)
  y, _ = call(memory, x, context=Context(key=jax.random.key(0)))
  assert set(np.unique(np.round(y, 4))) == {0.0, 4.0}
  np.testing.assert_allclose(y.mean(), 2, rtol=0.1)


def test_bfloat16_activations_read_a_float32_table():
  memory, x = make(), activations()
  y = read(memory, x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  wide = read(memory, x.astype(jnp.bfloat16).astype(jnp.float32))
  assert jnp.median(jnp.abs(y - wide)) < 0.02  # a near tie may choose another slot


def test_ids_of_padding_are_no_slot():
  valid = jnp.arange(7)[None] < jnp.array([[7], [2]])
  _, emitted = call(make(), activations(), valid)
  ids = emitted["ids"]
  assert ids.shape == emitted["weights"].shape == (2, 7, 6)
  np.testing.assert_array_equal(ids == 25, jnp.broadcast_to(~valid[..., None], ids.shape))


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"top_k": 6}, ValueError, "top_k=6 exceeds keys=5"),
    ({"query_dim": 5}, ValueError, "query_dim=5 .* even: 4 or 6"),
    ({"keys": 0}, ValueError, "keys=0"),
    ({"heads": 2.0}, ValueError, "heads=2.0"),
    ({"value_dim": -1}, ValueError, "value_dim=-1"),
    ({"query_norm": "group"}, ValueError, "query_norm='group' is not one of 'batch', 'layer'"),
    ({"query_dropout": 1.5}, ValueError, "query_dropout=1.5"),
    ({"input_dropout": -0.1}, ValueError, "input_dropout=-0.1"),
    ({"values": jnp.zeros((25, 6))}, TypeError, "values is .*; it must be the name"),
  ],
)
def test_constructor_errors_name_the_argument(options, error, message):
  with pytest.raises(error, match=message):
    make(**options)


def test_an_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="implementation='fast' of product_key_topk"):
    make(implementation="fast")(activations(), Stateless())


def recall(layer, frozen=(), steps=300):
  """Accuracy after learning 4096 random facts (token, token) -> token with a fixed read-out."""
  keys = jax.random.split(jax.random.key(0), 3)
  pairs = jnp.arange(4096)
  answers = jax.random.randint(keys[0], (4096,), 0, 64)
  embed = jax.random.normal(keys[1], (2, 64, 32))
  x = jnp.concatenate([embed[0, pairs // 64], embed[1, pairs % 64]], axis=-1)[None]
  head = jax.random.normal(keys[2], (64, 64)) / 8
  params, rest = split(layer, freeze=lambda name: name.startswith(frozen))
  optimizer = optax.adam(1e-2)

  @jax.jit
  def train(params, rest):
    def loss(params):
      logits = (join(params, rest)(x, Stateless())[0] @ head)[0]
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()
      return nats, jnp.mean(logits.argmax(-1) == answers)

    def step(carry, _):
      params, state = carry
      grads, accuracy = jax.grad(loss, has_aux=True)(params)
      updates, state = optimizer.update(grads, state)
      return (optax.apply_updates(params, updates), state), accuracy

    return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[1][-1]

  return float(train(params, rest))


@pytest.mark.slow
def test_memorises_what_a_feed_forward_layer_of_equal_flops_cannot():
  memory = recall(make(64, keys=64, heads=2, top_k=2, query_dim=16))
  # FLOPs a token: queries 2 * 64 * 32, scores 2 * 2 * 64 * 16, values 2 * 4 * 64 make 8704; a
  # feed-forward layer of hidden width 34 spends the same.
  dense = recall(FeedForward(64, hidden=34, rngs=nnx.Rngs(0)))
  print({"memory": memory, "dense": dense})
  assert memory > 0.99 and dense < 0.4


@pytest.mark.slow
def test_frozen_queries_and_keys_store_less():
  """Two slots a fact: those that random keys give to several facts must be told apart."""
  sizes = {"keys": 64, "heads": 1, "top_k": 2, "query_dim": 16}
  trained, frozen = recall(make(64, **sizes)), recall(make(64, **sizes), frozen=("search",))
  print({"trained": trained, "frozen": frozen})
  assert trained > frozen + 0.08
