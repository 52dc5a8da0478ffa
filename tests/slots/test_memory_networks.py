"""Memory networks against the paper's equations restated, and what supporting facts teach them."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Context, join, split
from memjax.slots import MemoryNetwork
from memjax.slots.memory_networks import NOBODY
from memjax.tasks import two_hop

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "memory_networks.npz"
VOCAB, DIM, SLOTS, WORDS = 7, 4, 5, 3


def make(**options):
  given: dict[str, Any] = {"slots": SLOTS, "words": WORDS, "hops": 2} | options
  return MemoryNetwork(VOCAB, DIM, **given, rngs=nnx.Rngs(0))


def sentences(*shape, seed=0):
  """Random sentences of one to J words."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(1, VOCAB, (*shape, WORDS))
  return np.where(np.arange(WORDS) < rng.integers(1, WORDS + 1, (*shape, 1)), ids, 0)


@jax.jit
def run(net, x, state, reset=None, valid=None, context=None):
  return net(x, state, reset=reset, valid=valid, context=context)


@jax.jit
def read(net, question, state):
  return net.read(question, state), net.find(question, state)


@jax.jit
def write(net, items, state, valid=None):
  return net.write(items, state, valid=valid)


def tables(u, name, temporal):
  """The paper's U as the library's parameters."""
  parts = {copy: u[:, i * VOCAB : (i + 1) * VOCAB].T for i, copy in enumerate(COPIES)}
  if temporal:
    parts["times"] = u[:, 3 * VOCAB :].T
  return {f"{name}/{key}": a for key, a in parts.items()}


COPIES = ("asked", "known", "candidate")


@pytest.mark.golden
@pytest.mark.parametrize(("name", "hops"), [("timeless", 1), ("timed", 2)])
def test_equals_the_papers_equations(name, hops):
  golden = {k[len(name) + 1 :]: a for k, a in np.load(GOLDEN).items() if k.startswith(f"{name}|")}
  temporal = name == "timed"
  drawn, rest = split(make(hops=hops, temporal=temporal, margin=0.5))

  def named(kind):
    of_output = tables(golden[f"{kind}|U_O"], "output", temporal)
    return of_output | tables(golden[f"{kind}|U_R"], "response", False)

  ids = {k[4:]: jnp.asarray(a) for k, a in golden.items() if k.startswith("ids|")}
  params = {k: jnp.asarray(named("value")[k]) for k in drawn}

  @jax.jit
  def loss(params):
    net = join(params, rest)
    state = net.write(ids["sentences"], net.init_state(2))
    found = net.loss(ids["question"], SLOTS - 1 - ids["facts"], ids["answer"], state)
    return found.sum(), (found, net.read(ids["question"], state), net.find(ids["question"], state))

  (_, (found, scores, places)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  np.testing.assert_array_equal(SLOTS - 1 - places, golden["found"])
  np.testing.assert_allclose(scores[:, 1:], golden["scores"][:, 1:], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found, golden["loss"], rtol=1e-5)
  for key, expected in named("grad").items():
    assert np.abs(expected).max() > 1e-3 or (hops, key) == (1, "output/known")
    np.testing.assert_allclose(grads[key], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{}, {"temporal": False, "hashed": True}])
def test_a_call_asks_each_sentence_and_then_stores_it(options):
  net, length = make(**options), 9
  x, rng = jnp.asarray(sentences(1, length)), np.random.default_rng(2)
  question, valid = rng.random((1, length)) < 0.3, rng.random((1, length)) < 0.8
  reset = rng.random((1, length)) < 0.2
  context = Context(tokens={"question": jnp.asarray(question)})
  y, last = run(net, x, net.init_state(1), reset, valid, context)
  state = net.init_state(1)
  for t in range(length):
    state = net.init_state(1) if reset[0, t] else state
    if valid[0, t]:
      np.testing.assert_allclose(y[:, t], read(net, x[:, t], state)[0], rtol=1e-4, atol=1e-5)
      state = write(net, x[:, t : t + 1], state, ~question[:, t : t + 1])
  jax.tree.map(np.testing.assert_array_equal, last, state)


def test_without_times_the_pass_over_pairs_finds_the_highest_score():
  whole = make(temporal=False)
  params, _ = split(whole)
  timed, rest = split(make())
  pairs = join(timed | params | {"output/times": jnp.zeros((3, DIM))}, rest)
  items, question = jnp.asarray(sentences(8, SLOTS)), jnp.asarray(sentences(8, seed=1))
  valid = jnp.asarray(np.random.default_rng(0).random((8, SLOTS)) < 0.7).at[0].set(False)
  state = write(whole, items, whole.init_state(8), valid)
  for got, expected in zip(read(pairs, question, state), read(whole, question, state), strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  assert (read(pairs, question, state)[1][0] == NOBODY).all()


def test_only_memories_that_share_a_word_are_scored():
  net = make(temporal=False, hashed=True, ignored=(6,))
  items = jnp.asarray([[[1, 2, 0], [2, 3, 0], [4, 6, 0], [5, 6, 0]]])
  state = write(net, items, net.init_state(1))
  _, found = read(net, jnp.asarray([[1, 6, 0]]), state)
  assert found[0, 0] == 3 and found[0, 1] in (2, 3)  # by the word 1, then by 1 or 2
  assert (read(net, jnp.asarray([[6, 0, 0]]), state)[1] == NOBODY).all()


def test_a_drawn_negative_is_one_of_the_sum():
  net, question = make(hops=1, margin=9.0), jnp.asarray(sentences(1, seed=1))
  state = write(net, jnp.asarray(sentences(1, 3)), net.init_state(1))
  facts, answer = jnp.asarray([[1]]), jnp.asarray([4])
  loss = jax.jit(lambda key: net.loss(question, facts, answer, state, key=key)[0])
  drawn = np.array(jax.lax.map(loss, jax.random.split(jax.random.key(0), 600)))
  whole = jax.jit(lambda: net.loss(question, facts, answer, state)[0])()
  # Two of the two others, and five words beside the answer: at this margin all of them count.
  assert 12 < len(np.unique(drawn.round(4))) <= 2 * 2 * 5
  np.testing.assert_allclose(drawn.mean(), 9 * 3, rtol=0.01)
  np.testing.assert_allclose(whole, 9 * (2 + 2 + 5), rtol=0.01)


@pytest.mark.parametrize("temporal", [True, False])
def test_the_padding_word_and_empty_memories(temporal):
  net, question = make(temporal=temporal), jnp.asarray(sentences(2, seed=1))
  params, rest = split(net)

  @jax.jit
  def grads(params, facts, valid):
    def loss(params):
      net = join(params, rest)
      state = net.write(jnp.asarray(sentences(2, 3)), net.init_state(2), valid=valid)
      return jnp.sum(
        net.loss(question, facts, jnp.asarray([1, 2]), state) + net.read(question, state)[:, 1]
      )

    return jax.value_and_grad(loss)(params)

  for stored, facts in ((True, [[0, 1], [2, NOBODY]]), (False, [[NOBODY] * 2] * 2)):
    value, found = grads(params, jnp.asarray(facts), jnp.full((2, 3), stored))
    assert jnp.isfinite(value)
    for name, grad in found.items():
      assert jnp.isfinite(grad).all(), name
      assert name.endswith("times") or (grad[0] == 0).all(), name


def test_an_id_out_of_range_is_nan_where_it_is_scored():
  net, items = make(), jnp.asarray(sentences(2, 2)).at[0, 1, 0].set(VOCAB)
  y, state = run(net, items, net.init_state(2))
  after, _ = read(net, jnp.asarray(sentences(2, seed=1)), state)
  assert jnp.isfinite(y[:, 0]).all() and jnp.isnan(y[0, 1]).all()
  assert jnp.isnan(after[0]).all() and jnp.isfinite(after[1]).all()


WORLD, BATCH = two_hop.World(), 64


def trained(asked_hops: int, hops: int, length: int, temporal: bool = True, steps: int = 250):
  """Accuracy on new stories, of answers and facts, after training on both."""
  net = MemoryNetwork(
    WORLD.vocab, 24, slots=length, words=2, hops=hops, temporal=temporal, rngs=nnx.Rngs(0)
  )
  params, rest = split(net)
  optimiser = optax.adam(optax.cosine_decay_schedule(2e-2, steps))

  def told(key):
    stories = two_hop.sample(key, BATCH, WORLD, length=length, hops=asked_hops)
    state = net.write(stories.statements, net.init_state(BATCH))
    return stories, length - 1 - stories.facts[:, :hops], state

  def loss(params, key):
    stories, facts, state = told(key)
    return join(params, rest).loss(stories.question, facts, stories.answer, state).mean()

  @jax.jit
  def train(params):
    def step(carry, key):
      params, moments = carry
      updates, moments = optimiser.update(jax.grad(loss)(params, key), moments, params)
      return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]

  @jax.jit
  def test(params, key):
    (stories, facts, state), net = told(key), join(params, rest)
    right = jnp.argmax(net.read(stories.question, state), axis=1) == stories.answer
    return jnp.mean(right), jnp.mean((net.find(stories.question, state) == facts).all(1))

  params = train(params)
  found = [test(params, jax.random.key(i)) for i in range(100, 110)]
  return tuple(float(np.mean(a)) for a in zip(*found, strict=True))


@pytest.mark.slow
def test_two_facts_are_found_in_time_and_needed():
  (two, facts), (one, _) = trained(2, 2, 8), trained(2, 1, 8)
  print(f"where the object is: {two:.3f} (facts {facts:.3f}) with two hops, {one:.3f} with one")
  assert two > 0.95 and facts > 0.95
  assert one < 0.6


def most_told(length: int) -> float:
  """Accuracy of naming the room that was told most often: what is known without time."""
  stories = two_hop.sample(jax.random.key(0), 500, WORLD, length=length, hops=1)
  given = stories.statements, stories.question[:, 0], stories.answer
  right, rooms = [], WORLD.vocab - WORLD.rooms
  for story, asked, answer in zip(*map(np.asarray, given), strict=True):
    told = np.bincount([b for a, b in story if a == asked and b >= rooms])
    most = np.flatnonzero(told == told.max())
    right.append((answer in most) / len(most))
  return float(np.mean(right))


def test_what_was_written_last_is_told_by_time_alone():
  timeless, found = trained(1, 1, 16, temporal=False)
  chance = most_told(16)
  print(
    f"where the actor is: {timeless:.3f} (facts {found:.3f}) without times, chance {chance:.3f}"
  )
  assert timeless < chance + 0.05 and found < chance + 0.05


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hops": 0}, "hops=0"),
    ({"margin": -1.0}, "margin=-1.0 must not be negative"),
    ({"ignored": (VOCAB,)}, r"ignored has ids \[7\]"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_sentences_are_named():
  net = make()
  with pytest.raises(TypeError, match=r"float32\[2, 1, 3\].*ids \[B, T, words=3\]"):
    net(jnp.zeros((2, 1, 3)), net.init_state(2))
  with pytest.raises(ValueError, match="state was made for batch 3"):
    net.read(jnp.zeros((2, 3), jnp.int32), net.init_state(3))
  with pytest.raises(ValueError, match=r"facts have shape \[2, 1\]; they must be \[B, hops\]"):
    ids = jnp.zeros((2, 3), jnp.int32)
    net.loss(ids, ids[:, :1], ids[:, 0], net.init_state(2))
