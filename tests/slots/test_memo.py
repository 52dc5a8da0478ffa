"""MEMO against its equations restated, and its behaviour as a store."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, channel, join, split
from memjax.core.state import select
from memjax.core.usage import measured
from memjax.slots import MEMO, EndToEndMemoryNetwork
from tests.golden import memo as golden_memo

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "memo.npz"
VOCAB, DIM, SLOTS, ITEMS = 7, 4, 3, 2


def make(vocab=VOCAB, dim=DIM, **options):
  given: dict[str, Any] = {"slots": SLOTS, "items": ITEMS, "heads": 2, "hops": 3, "policy": 3}
  return MEMO(vocab, dim, **(given | options), rngs=nnx.Rngs(0))


def facts(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(1, VOCAB, (*shape, ITEMS)))


@jax.jit
def run(net, x, state, reset=None, valid=None, context=None):
  return net(x, state, reset=reset, valid=valid, context=context)


@jax.jit
def read(net, question, state, context=None):
  return net.read(question, state, context=context)


@jax.jit
def write(net, items, state, valid=None):
  return net.write(items, state, valid=valid)


def small():
  """The network of the golden script, its golden arrays, and a function that differentiates it."""
  g, golden = golden_memo, dict(np.load(GOLDEN))
  net = make(g.VOCAB, g.DIM, slots=g.SLOTS, hops=g.HOPS, policy=g.WIDTH, temporal=True)
  drawn, rest = split(net)
  params = {k: jnp.asarray(golden[f"value|{k}"]) for k in drawn}
  ids = {k: jnp.asarray(golden[f"ids|{k}"]) for k in ("facts", "question", "answer")}
  terms = {"discount": g.DISCOUNT, "horizon": g.HORIZON}

  def loss(params, stored, weights):
    net = join(params, rest)
    state = net.write(ids["facts"], net.init_state(2), valid=stored)
    found = net.losses(ids["question"], ids["answer"], state, **terms)
    watched = sum(w * a for w, a in zip(weights, found.halting, strict=True))
    return jnp.sum(found.answer + watched), found

  return params, golden, jax.jit(jax.value_and_grad(loss, has_aux=True))


SMALL = functools.cache(small)
STORED = np.arange(golden_memo.SLOTS) < np.reshape(golden_memo.COUNT, (2, 1))


@pytest.mark.golden
def test_equals_the_equations_restated():
  params, golden, differentiate = SMALL()
  (total, found), grads = differentiate(params, STORED, golden_memo.WEIGHTS)
  columns = (found.answer, *found.halting, found.hops)
  np.testing.assert_allclose(jnp.stack(columns, 1), golden["losses"], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found.right, [True, False])
  expected = np.sum(golden["losses"][:, :4] @ (1, *golden_memo.WEIGHTS))
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  for key, grad in grads.items():
    expected = golden[f"grad|{key}"]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_policy_and_the_network_have_no_gradient_in_common():
  params, _, differentiate = SMALL()
  with_policy = differentiate(params, STORED, (1.0, 1.0, 1.0))[1]
  without = differentiate(params, STORED, (0.0, 0.0, 0.0))[1]
  for name in params:
    assert jnp.abs(with_policy[name]).max() > 0, name
    if name.startswith("policy/"):  # the answer's loss adds nothing,
      assert (without[name] == 0).all(), name
    else:  # and nor do the policy's, to the last bit
      np.testing.assert_array_equal(without[name], with_policy[name], name)


def test_the_padding_item_and_empty_memories():
  params, _, differentiate = SMALL()
  for stored in (STORED, np.zeros_like(STORED)):
    (total, _), grads = differentiate(params, stored, golden_memo.WEIGHTS)
    assert jnp.isfinite(total)
    for name, grad in grads.items():
      assert jnp.isfinite(grad).all(), name
    assert (grads["facts/table"][0] == 0).all()


def test_a_call_asks_each_fact_and_then_stores_it():
  net, length = make(temporal=True), 9
  x, rng = facts(2, length), np.random.default_rng(2)
  question, valid, reset = (rng.random((2, length)) < rate for rate in (0.3, 0.8, 0.2))
  context = Context(tokens={"question": jnp.asarray(question)})
  y, last = run(net, x, net.init_state(2), reset, valid, context)
  state, empty = net.init_state(2), net.init_state(2)
  for t in range(length):
    state = select(jnp.asarray(reset[:, t]), empty, state)
    expected = read(net, x[:, t], state)
    # Two programs, which sum in float32 in other orders over hops.
    np.testing.assert_allclose(y[valid[:, t], t], expected[valid[:, t]], rtol=1e-4, atol=1e-5)
    state = write(net, x[:, t : t + 1], state, (valid & ~question)[:, t : t + 1])
  jax.tree.map(np.testing.assert_array_equal, last, state)


def test_items_stay_apart_in_a_fact_and_facts_have_no_order():
  net, question = make(), facts(1, seed=1)
  items = jnp.asarray([[[1, 2], [3, 4], [5, 6]]])

  @jax.jit
  def both(net, items):
    keys, _ = net.facts(items)
    return keys, net.read(question, net.write(items, net.init_state(1)))

  keys, answer = both(net, items)
  exchanged = both(net, items[:, :, ::-1])
  assert jnp.abs(exchanged[0] - keys).max() > 0.1 and jnp.abs(exchanged[1] - answer).max() > 1e-3
  np.testing.assert_allclose(both(net, items[:, ::-1])[1], answer, rtol=1e-5, atol=1e-6)
  for layer in (
    net.facts.key,
    net.facts.value,
  ):  # the same map of every place: the sum of the embeddings
    layer.kernel[...] = jnp.tile(layer.kernel[...][:2], (ITEMS, 1))
  added, swapped = both(net, items), both(net, items[:, :, ::-1])
  for a, b in zip(added, swapped, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_hop_of_one_head_is_a_hop_of_a_memn2n():
  d, vocab = 4, VOCAB
  options = {"tying": "layerwise", "position": None, "temporal": False}
  other = EndToEndMemoryNetwork(
    vocab, d, slots=SLOTS, words=ITEMS, hops=1, **options, rngs=nnx.Rngs(1)
  )
  net = make(dim=d, heads=1, hops=1, policy=None, norm=False)
  eye, tiled = jnp.eye(d), lambda m: jnp.tile(m, (ITEMS, 1))
  change = jnp.asarray(np.random.default_rng(0).normal(size=(d, d)), jnp.float32)
  a, b, c, out = other.tables[0], other.asked, other.tables[1], other.out
  assert b is not None and out is not None and other.carry is not None
  a[...], other.carry[...] = 5 * a[...], eye
  b[...], c[...] = a[...], a[...] @ change
  net.facts.table[...], net.query.kernel[...] = a[...], tiled(eye)
  net.facts.key.kernel[...] = tiled(eye)
  net.facts.value.kernel[...], net.turn[...], net.out.kernel[...] = (
    tiled(change),
    eye[None] * 2.0,
    eye,
  )
  params, rest = split(net)  # relu(x) - relu(-x) = x
  params |= {"hidden/kernel": jnp.concatenate([eye, -eye], 1)}
  params |= {"answer/kernel": jnp.concatenate([out[...].T, -out[...].T], 0)}
  net, items, question = join(params, rest), facts(2, SLOTS), facts(2, seed=1)
  got = read(net, question, write(net, items, net.init_state(2)))
  expected = read(other, question, write(other, items, other.init_state(2)))
  np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-6)


def test_one_hot_vectors_are_read_as_their_ids():
  ids, vectors = make(), make(vectors=True)
  params, rest = split(ids)
  vectors = join({k: v for k, v in params.items()}, split(vectors)[1])
  vectors.facts.table[...] = vectors.facts.table[...].at[0].set(0)
  items, question = facts(2, SLOTS).at[0, 1, 1].set(0), facts(2, seed=1)
  flat = [jax.nn.one_hot(a, VOCAB).reshape(*a.shape[:-1], -1) for a in (items, question)]
  got = read(vectors, flat[1], write(vectors, flat[0], vectors.init_state(2)))
  expected = read(ids, question, write(ids, items, ids.init_state(2)))
  np.testing.assert_allclose(got[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-5)


def test_without_a_policy_all_hops_are_made():
  fixed, questions = make(policy=None), facts(2, seed=1)
  params, _ = split(fixed)
  whole, rest = split(make())
  state = write(fixed, facts(2, SLOTS), fixed.init_state(2))

  @jax.jit
  def losses(net):
    given = questions, jnp.asarray([1, 2]), state
    return net.losses(*given), net.loss(*given, policy_weight=2, value_weight=3, hops_weight=4)

  made = [losses(fixed)]
  for bias in (-1.0, 1.0):
    made += [losses(join(whole | params | {"policy/halt_out/bias": jnp.full(1, bias)}, rest))]
  found = [of for of, _ in made]
  for of, total in made:
    policy, value, hops = of.halting
    np.testing.assert_allclose(total, of.answer + 2 * policy + 3 * value + 4 * hops, rtol=1e-5)
  np.testing.assert_allclose(found[0].answer, found[1].answer, rtol=1e-5)
  assert jnp.abs(found[2].answer - found[1].answer).max() > 1e-3
  assert [f.hops.tolist() for f in found] == [[3, 3], [3, 3], [1, 1]]
  assert all((a == 0).all() for a in found[0].halting)


def test_dropout_and_hops_are_drawn_with_a_key():
  net, fact = make(dropout=0.5, halt_bias=0.0), facts(1, 1)
  x = jnp.broadcast_to(fact, (1, 5, ITEMS))  # the same question, of the same memory
  tokens = {"question": jnp.asarray([[False] + [True] * 4])}

  @jax.jit
  def ask(key):
    with channel.collect(measure=True) as frame:
      y, _ = net(x, net.init_state(1), context=Context(key=key, tokens=tokens))
    return y, measured(frame.emitted)

  (y, found), (again, _) = ask(jax.random.key(0)), ask(jax.random.key(0))
  np.testing.assert_array_equal(y, again)
  assert len(np.unique(y[0, 1:, 0])) == 4
  total = sum(found[f"hop{hop}"]["read_peak"].count for hop in range(3)) / net.heads
  assert found[""]["hops"].count == 4 and found[""]["hops"].total == total
  assert 1 < found[""]["hops"].value < 3


def test_an_id_out_of_range_is_nan_where_it_is_read():
  net, items, none = make(temporal=True), facts(2, 9).at[0, 1, 0].set(VOCAB), np.zeros((2, 9), bool)
  context = Context(tokens={"question": jnp.asarray(none)})
  y, _ = run(net, items, net.init_state(2), none, ~none, context)
  # It is asked at 1, and in the memory until three facts came after it.
  bad = np.isin(np.arange(9), (1, 2, 3, 4))
  np.testing.assert_array_equal(jnp.isnan(y[0]).all(axis=-1), bad)
  assert jnp.isfinite(y[1]).all() and jnp.isfinite(y[0, ~bad]).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hops": 0}, "hops=0"),
    ({"heads": 3}, "heads=3 does not divide dim=4"),
    ({"dropout": 1.0}, "dropout=1.0 must lie in"),
    ({"policy": 0}, "policy=0"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_facts_are_named():
  net, vectors = make(), make(vectors=True)
  with pytest.raises(TypeError, match=r"float32\[2, 1, 2\].*ids \[B, T, items=2\]"):
    net(jnp.zeros((2, 1, 2)), net.init_state(2))
  with pytest.raises(ValueError, match=r"questions are .*items=2"):
    net.read(jnp.zeros((2, 3), jnp.int32), net.init_state(2))
  with pytest.raises(ValueError, match="state was made for batch 3"):
    net.read(jnp.zeros((2, 2), jnp.int32), net.init_state(3))
  with pytest.raises(ValueError, match=r"\[B, T, dim=14\]"):
    vectors(jnp.zeros((2, 1, 7)), vectors.init_state(2))
