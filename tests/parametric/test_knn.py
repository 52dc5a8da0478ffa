"""The exact kNN teacher and the taps of a base model: specs/parametric.md section 6."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import channel, join, split
from memjax.core.sharding import make_mesh
from memjax.parametric import base_states, interpolate, knn_search, knn_teacher
from memjax.transformer import FeedForward, LanguageModel, Stack

VOCAB = 7
search = jax.jit(knn_search, static_argnames=("neighbours", "chunk"))
teach = jax.jit(knn_teacher, static_argnames=("vocab", "neighbours", "temperature", "chunk"))
teach = functools.partial(teach, vocab=VOCAB, neighbours=4, chunk=5)


def store(entries=13, queries=6):
  keys = jax.random.split(jax.random.key(0), 3)
  contexts = jax.random.normal(keys[0], (entries, 3))
  return (
    jax.random.normal(keys[1], (queries, 3)),
    contexts,
    jax.random.randint(keys[2], (entries,), 0, VOCAB),
  )


@pytest.mark.parametrize("chunk", [5, 13, 100])
def test_search_is_exact(chunk):
  """Squared distances of the 4 nearest of 13, by numpy, whatever the chunk."""
  queries, keys, _ = store()
  distances, ids = search(queries, keys, 4, chunk=chunk)
  all_distances = np.square(np.asarray(queries)[:, None] - np.asarray(keys)).sum(-1)
  nearest = np.argsort(all_distances)[:, :4]
  np.testing.assert_array_equal(ids, nearest)
  want = np.take_along_axis(all_distances, nearest, 1)
  np.testing.assert_allclose(distances, want, rtol=1e-4, atol=1e-5)


def test_own_and_invalid_entries_are_passed_over():
  _, keys, _ = store()
  own = jnp.where(jnp.arange(13) == 3, -1, jnp.arange(13))
  _, ids = search(keys, keys, 4, own=own, valid=jnp.arange(13) != 5, chunk=5)
  assert not (ids == own[:, None]).any() and not (ids == 5).any()
  assert ids[3, 0] == 3


def test_fewer_entries_than_neighbours():
  queries, keys, values = store(2)
  distances, _ = search(queries, keys, 4, chunk=5)
  assert jnp.isinf(distances[:, 2:]).all() and jnp.isfinite(distances[:, :2]).all()
  p = teach(queries, keys, values)
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
  assert not (p[:, np.setdiff1d(np.arange(VOCAB), values)]).any()
  np.testing.assert_array_equal(teach(queries, keys, values, valid=jnp.zeros(2, bool)), 0)


def test_distribution_is_a_softmax_of_distances_summed_by_value():
  queries, keys, values = store()
  p = teach(queries, keys, values, temperature=0.7)
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
  distances = np.square(np.asarray(queries)[:, None] - np.asarray(keys)).sum(-1)
  want = np.zeros((6, VOCAB))
  for q in range(6):
    for i in np.argsort(distances[q])[:4]:
      want[q, values[i]] += np.exp(-distances[q, i] / 0.7)
  np.testing.assert_allclose(p, want / want.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_an_entry_stored_m_times_weighs_m_times_as_much():
  key = jnp.array([[0.0, 1.0, 0.0]])
  keys = jnp.concatenate([key, key, key, -key])
  p = teach(jnp.zeros((1, 3)), keys, jnp.array([2, 2, 2, 5]))
  np.testing.assert_allclose(p[0, jnp.array([2, 5])], [0.75, 0.25], rtol=1e-6)


def test_all_neighbours_at_infinite_temperature_give_the_unigram():
  queries, keys, values = store()
  p = knn_teacher(queries, keys, values, vocab=VOCAB, neighbours=13, temperature=1e9)
  unigram = np.bincount(values, minlength=VOCAB) / 13
  np.testing.assert_allclose(p, np.tile(unigram, (6, 1)), rtol=1e-5, atol=1e-7)


def test_a_sharded_store_gives_the_same():
  queries, keys, values = store(16)
  rows = jax.NamedSharding(make_mesh({"data": 8}), jax.P("data"))
  apart = teach(queries, jax.device_put(keys, rows), jax.device_put(values, rows))
  np.testing.assert_allclose(apart, teach(queries, keys, values), rtol=1e-5, atol=1e-6)


def test_a_store_with_the_test_contexts_costs_at_most_log_lambda():
  """k = 1, small tau: the stored continuation has all the mass."""
  _, keys, values = store()
  p = teach(keys, keys, values, neighbours=1, temperature=1e-3)
  model = jnp.full((13, VOCAB), -jnp.log(VOCAB))
  log_p = interpolate(jnp.log(p), model, 0.25)
  nll = -jnp.take_along_axis(log_p, values[:, None], axis=1)
  assert nll.max() <= -jnp.log(0.25) + 1e-6


def test_the_teacher_has_no_gradient():
  queries, keys, values = store()
  grad = jax.grad(lambda q, k: jnp.sum(jnp.square(teach(q, k, values))), (0, 1))(queries, keys)
  np.testing.assert_array_equal(grad[0], 0)
  np.testing.assert_array_equal(grad[1], 0)


def language_model(repeats):
  pattern = (functools.partial(FeedForward, hidden=8), functools.partial(FeedForward, hidden=4))
  body = functools.partial(Stack, pattern=pattern, repeats=repeats)
  return LanguageModel(VOCAB, 4, body=body, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("layer", "depth"), [(-1, 5), (0, 0), (3, 3)])
def test_base_states_are_the_normalised_input_of_a_layer(layer, depth):
  """Also of layers that run stacked in one scan."""
  model = language_model(3)
  ids = jax.random.randint(jax.random.key(0), (2, 5), 0, VOCAB)
  run = jax.jit(functools.partial(base_states, layer=layer))
  h, logits, _ = run(model, ids, model.init_state(2))
  np.testing.assert_allclose(logits, model(ids, model.init_state(2))[0], rtol=1e-5, atol=1e-6)
  x, state = model.embed(ids), model.init_state(2)
  odd_even = list(model.body.layers.values())  # each stacks three layers
  layers = [jax.tree.map(operator.itemgetter(d // 2), odd_even[d % 2]) for d in range(6)]
  for below in layers[:depth]:
    y, _ = below.memory(below.norm(x), state.layers["0+2x3"])
    x = x + y
  np.testing.assert_allclose(h, layers[depth].norm(x), rtol=1e-5, atol=1e-6)


def test_base_states_of_a_single_block_and_without_gradient():
  model = language_model(1)
  params, rest = split(model)
  ids = jnp.array([[1, 2, 3]])

  def total(params):
    model = join(params, rest)
    h, logits, _ = base_states(model, ids, model.init_state(1))
    return jnp.sum(h) + jnp.sum(logits)

  assert all((grad == 0).all() for grad in jax.jit(jax.grad(total))(params).values())


def test_base_states_leave_the_channel_as_it_was():
  model = language_model(1)
  with channel.collect() as frame:
    base_states(model, jnp.array([[1, 2]]), model.init_state(1))
  assert not frame.emitted


def test_errors_name_the_argument():
  queries, keys, values = store()
  model, ids = language_model(1), jnp.array([[1, 2]])
  with pytest.raises(ValueError, match="layer=2 must name a layer"):
    base_states(model, ids, model.init_state(1), layer=2)
  with pytest.raises(ValueError, match=r"queries \[6, 2\] must be \[Q, D\] and keys \[13, 3\]"):
    knn_search(queries[:, :2], keys, 2)
  with pytest.raises(ValueError, match="neighbours=0"):
    knn_search(queries, keys, 0)
  with pytest.raises(ValueError, match=r"own has shape \[13\]; it must be \[6\]"):
    knn_search(queries, keys, 2, own=jnp.arange(13))
  with pytest.raises(ValueError, match=r"next_ids \[12\] must be \[M\] = \[13\]"):
    knn_teacher(queries, keys, values[1:], vocab=VOCAB)
  with pytest.raises(ValueError, match="temperature=0"):
    knn_teacher(queries, keys, values, vocab=VOCAB, temperature=0)
