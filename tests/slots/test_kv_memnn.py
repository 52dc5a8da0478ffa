"""Key-value memory networks against the authors' code restated, and their behaviour as a store."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Context, channel, join, split
from memjax.core.usage import measured
from memjax.slots import EndToEndMemoryNetwork, KeyValueMemoryNetwork, kv_encodings
from memjax.tasks import two_hop

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "kv_memnn.npz"
VOCAB, DIM, SLOTS, KEY, VALUE = 9, 5, 4, 3, 2
FULL = {"hops": 3, "temporal": True, "position": True, "rotate_last": True, "shared_answers": False}


def make(**options):
  given = {"slots": SLOTS, "key_words": KEY, "value_words": VALUE, "init": 0.5} | options
  return KeyValueMemoryNetwork(VOCAB, given.pop("dim", DIM), **given, rngs=nnx.Rngs(0))


def bags(*shape, seed=0):
  """Random bags of one to J words."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(1, VOCAB, shape)
  return np.where(np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, (*shape[:-1], 1)), ids, 0)


def slots(batch, length, seed=0):
  both = bags(batch, length, KEY, seed=seed), bags(batch, length, VALUE, seed=seed + 50)
  return jnp.asarray(np.concatenate(both, axis=2))


@jax.jit
def run(net, x, state, reset=None, valid=None, context=None):
  return net(x, state, reset=reset, valid=valid, context=context)


@jax.jit
def read(net, question, state, candidates=None):
  return net.read(question, state, candidates=candidates)


@jax.jit
def write(net, items, state, valid=None):
  return net.write(items, state, valid=valid)


@pytest.mark.golden
@pytest.mark.parametrize(("name", "options"), [("plain", {}), ("full", FULL)])
def test_equals_the_authors_code(name, options):
  golden = {k[len(name) + 1 :]: a for k, a in np.load(GOLDEN).items() if k.startswith(name)}
  drawn, rest = split(make(**options))
  params = {k: jnp.asarray(golden[f"value|{k}"]) for k in drawn}
  question, keys, values, candidates = (
    jnp.asarray(golden[f"ids|{k}"]) for k in ("question", "keys", "values", "candidates")
  )

  @jax.jit
  def loss(params):
    net = join(params, rest)
    state = net.write(jnp.concatenate([keys, values], axis=2), net.init_state(2))
    scores = net.read(question, state, candidates=candidates)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.zeros(2, int)).sum(), scores

  (_, scores), grads = jax.value_and_grad(loss, has_aux=True)(params)
  np.testing.assert_allclose(scores, golden["scores"], rtol=1e-5, atol=1e-5)
  for key, grad in grads.items():
    expected = golden[f"grad|{key}"]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("options", [{}, FULL | {"select": 2}])
def test_a_call_asks_each_key_and_then_stores_it(options):
  net, length = make(**options), 9
  x, rng = slots(1, length), np.random.default_rng(2)
  question, valid = rng.random((1, length)) < 0.3, rng.random((1, length)) < 0.8
  reset = rng.random((1, length)) < 0.2
  context = Context(tokens={"question": jnp.asarray(question)})
  y, last = run(net, x, net.init_state(1), reset, valid, context)
  state = net.init_state(1)
  for t in range(length):
    state = net.init_state(1) if reset[0, t] else state
    if valid[0, t]:
      one = read(net, x[:, t, :KEY], state)
      np.testing.assert_allclose(y[:, t], one, rtol=1e-4, atol=1e-5)
      state = write(net, x[:, t : t + 1], state, ~question[:, t : t + 1])
  jax.tree.map(np.testing.assert_array_equal, last, state)


def test_equal_keys_and_values_without_rotation_are_a_one_table_memn2n():
  net = make(hops=2, scale=False, value_words=KEY)
  other = EndToEndMemoryNetwork(
    VOCAB, DIM, slots=SLOTS, words=KEY, hops=2, position=None, temporal=False, rngs=nnx.Rngs(0)
  )
  for table in other.tables:
    table[...] = net.table[...]
  params, rest = split(net)
  identity = {"rotations/0/kernel": jnp.eye(DIM), "rotations/0/bias": jnp.zeros(DIM)}
  net = join(params | identity, rest)
  items, question = jnp.asarray(bags(2, 3, KEY)), jnp.asarray(bags(2, KEY, seed=1))
  empty = jnp.zeros_like(items)
  ask = jax.jit(lambda items: other.read(question, other.write(items, other.init_state(2))))
  expected = ask(items)
  for values in (items, empty):  # without words of its own a value is its key
    state = write(net, jnp.concatenate([items, values], axis=2), net.init_state(2))
    np.testing.assert_allclose(read(net, question, state), expected, rtol=1e-5, atol=1e-5)


def test_swapped_values_change_what_is_returned_and_not_where_it_looks():
  net, question = make(hops=1), jnp.asarray(bags(1, KEY, seed=1))
  items = slots(1, 2)
  swapped = items.at[:, :, KEY:].set(items[:, ::-1, KEY:])

  @jax.jit
  def look(x):
    with channel.collect(measure=True) as frame:
      y = net.read(question, net.write(x, net.init_state(1)))
    return y, measured(frame.emitted)["hop0"]["read_peak"].value

  found, looks = zip(*(look(x) for x in (items, swapped)), strict=True)
  assert looks[0] == looks[1] and jnp.abs(found[0] - found[1]).max() > 1e-3
  q, k, v = (net._embed(ids, False)[0] for ids in (question, items[..., :KEY], items[..., KEY:]))
  p = jax.nn.softmax(k @ q)
  for y, values in zip(found, (v, v[::-1]), strict=True):
    table = net.table[...].at[0].set(0)
    np.testing.assert_allclose(y[0], table @ (q + p @ values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, FULL])
def test_selected_slots_are_read_as_if_they_were_all(options):
  """All that share a word with the question fit: the same as with only those in the memory."""
  items = slots(1, 4).at[0, :, :KEY].set(jnp.asarray([[1, 2, 0], [3, 4, 0], [5, 2, 0], [4, 6, 1]]))
  question = jnp.asarray([[2, 4]])  # 4 is ignored
  net, whole = make(select=3, ignored=(4,), **options), make(**options)
  got = read(net, question, write(net, items, net.init_state(1)))
  if options:  # with the times that they have among all
    filled, times = jnp.asarray([[False, True, False, True]]), jnp.arange(SLOTS)[None]

    @jax.jit
    def reason(newest_first):
      keys, values = whole._encode(newest_first[..., :KEY], newest_first[..., KEY:])
      return whole._logits(whole._reason(question, keys, values, times, filled)[0], None)

    expected = reason(items[:, ::-1])
  else:
    expected = read(whole, question, write(whole, items[:, ::2], whole.init_state(1)))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_most_recent_of_too_many_slots_are_selected():
  net, whole = make(select=2), make()
  items = slots(1, 4).at[0, :, 0].set(jnp.asarray([7, 7, 8, 7])).at[..., 1:KEY].set(0)
  question = jnp.asarray([[7]])
  got = read(net, question, write(net, items, net.init_state(1)))
  expected = read(whole, question, write(whole, items[:, 1::2], whole.init_state(1)))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
  nothing = read(net, jnp.asarray([[6]]), write(net, items, net.init_state(1)))
  empty = read(net, jnp.asarray([[6]]), net.init_state(1))
  np.testing.assert_allclose(nothing, empty, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, FULL | {"select": 2}])
def test_the_padding_word_and_empty_memories(options):
  net, items, question = make(**options), slots(2, 3), jnp.asarray(bags(2, KEY, seed=1))

  @jax.jit
  @jax.grad
  def loss(params, rest, stored):
    net = join(params, rest)
    state = net.write(items, net.init_state(2), valid=stored)
    return jnp.sum(jax.nn.log_softmax(net.read(question, state))[:, 1])

  params, rest = split(net)
  for stored in (jnp.ones((2, 3), bool), jnp.zeros((2, 3), bool)):
    for name, grad in loss(params, rest, stored).items():
      assert jnp.isfinite(grad).all(), name
      assert name not in ("table", "out") or (grad[0] == 0).all(), name


def test_an_id_out_of_range_is_nan_where_it_is_read():
  net, items = make(), slots(2, 2).at[0, 1, 0].set(VOCAB)
  y, state = run(net, items, net.init_state(2))
  after = read(net, items[:, 0, :KEY], state, jnp.asarray([[1, 0], [VOCAB, 2]]))
  assert jnp.isfinite(y[:, 0]).all() and jnp.isnan(y[0, 1]).all()
  np.testing.assert_array_equal(jnp.isnan(after), [[True, True], [False, True]])


def test_keys_and_values_of_knowledge_and_texts():
  keys, values = kv_encodings.triples([1, 2], [8, 8], [3, 4], inverse=[9, 9])
  np.testing.assert_array_equal(keys, [[1, 8], [2, 8], [3, 9], [4, 9]])
  np.testing.assert_array_equal(values[:, 0], [3, 4, 1, 2])
  words, entities = np.array([5, 1, 6, 7, 2]), np.array([0, 1, 0, 0, 1], bool)
  keys, values = kv_encodings.windows(words, entities, width=3, centre=10, title=4)
  np.testing.assert_array_equal(keys, [[5, 11, 6], [7, 12, 0]] * 2)
  np.testing.assert_array_equal(values[:, 0], [1, 2, 4, 4])
  x = kv_encodings.items(keys, values, 4, 2)
  np.testing.assert_array_equal(x[0], [5, 11, 6, 0, 1, 0])
  ids, same = kv_encodings.sentences([[1, 2]])
  assert (ids == same).all() and ids.dtype == np.int32
  with pytest.raises(ValueError, match="keys have 3 words; at most key_words=2"):
    kv_encodings.items(keys, values, 2, 1)
  with pytest.raises(ValueError, match="width=2 must be odd"):
    kv_encodings.windows(words, entities, width=2)


def accuracy(hops: int, steps: int = 250) -> float:
  """Accuracy on new two-hop questions over triples after training on answers alone."""
  world, batch = two_hop.World(), 64
  count = world.objects + world.actors
  net = KeyValueMemoryNetwork(
    world.vocab + 2, 24, key_words=2, slots=count, hops=hops, answers=world.vocab, rngs=nnx.Rngs(0)
  )
  params, rest = split(net)
  optimiser = optax.adam(1e-2)

  def loss(params, key):
    net, asked = join(params, rest), two_hop.sample_triples(key, batch, world)
    items = jnp.concatenate([asked.keys, asked.values], axis=2)
    logits = net.read(asked.question, net.write(items, net.init_state(batch)))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, asked.answer)
    return nats.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == asked.answer)

  @jax.jit
  def train(params):
    def step(carry, key):
      params, moments = carry
      (_, hit), grads = jax.value_and_grad(loss, has_aux=True)(params, key)
      updates, moments = optimiser.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), hit

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, (params, optimiser.init(params)), keys)[1]

  return float(train(params)[-20:].mean())


def test_two_hops_are_needed_and_enough():
  two, one = accuracy(2), accuracy(1)
  print(f"where the object is: {two:.3f} with two hops, {one:.3f} with one")
  assert two > 0.95
  assert one < 0.7


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hops": 0}, "hops=0"),
    ({"answers": VOCAB + 1}, "answers=10 exceeds vocab=9"),
    ({"select": SLOTS + 1}, "select=5 exceeds slots=4"),
    ({"ignored": (1, VOCAB)}, r"ignored has ids \[9\]"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_slots_are_named():
  net = make()
  with pytest.raises(TypeError, match=r"float32\[2, 1, 5\].*ids \[B, T, words=5\]"):
    net(jnp.zeros((2, 1, 5)), net.init_state(2))
  with pytest.raises(ValueError, match="words=5"):
    net.write(jnp.zeros((2, 1, 4), jnp.int32), net.init_state(2))
  with pytest.raises(ValueError, match=r"ids \[B, J\]"):
    net.read(jnp.zeros((2, 1, 5), jnp.int32), net.init_state(2))
  with pytest.raises(ValueError, match=r"\[C, J\] or \[B, C, J\]"):
    net.read(jnp.zeros((2, 3), jnp.int32), net.init_state(2), candidates=jnp.zeros(3, jnp.int32))
  with pytest.raises(ValueError, match="state was made for batch 3"):
    net(jnp.zeros((2, 1, 5), jnp.int32), net.init_state(3))
