"""End-to-end memory networks against a plain restatement, and their behaviour as a store."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memjax.core import Context, replace, split
from memjax.slots import EndToEndMemoryNetwork

VOCAB, DIM, SLOTS, WORDS = 9, 6, 4, 3
FORMS = [
  {},
  {"tying": "layerwise", "position": "paper"},
  {"position": None, "temporal": False, "mask_empty": False},
  {"linear": True, "answers": VOCAB + SLOTS},
]


def make(**options):
  sizes = {"slots": SLOTS, "words": WORDS, "hops": 2}
  return EndToEndMemoryNetwork(VOCAB, DIM, **(sizes | options), rngs=nnx.Rngs(0))


def sentences(*shape, seed=0):
  """Random sentences of one to J words."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(1, VOCAB, (*shape, WORDS))
  return np.where(np.arange(WORDS) < rng.integers(1, WORDS + 1, (*shape, 1)), ids, 0)


@jax.jit
def run(net, x, state, reset=None, valid=None, context=None):
  return net(x, state, reset=reset, valid=valid, context=context)


@jax.jit
def read(net, question, state, context=None):
  return net.read(question, state, context=context)


@jax.jit
def write(net, items, state, valid=None):
  return net.write(items, state, valid=valid)


def weights(net, sentence):
  """`l [J + 1, d]`; the last row is the time word's."""
  k, d = np.arange(1, DIM + 1)[None], DIM
  j, last = np.arange(1, WORDS + 2)[:, None], WORDS + net.temporal
  if net.position == "centred":
    return 1 + 4 * (k - (d + 1) / 2) * (j - (last + 1) / 2) / (d * last)
  if net.position == "paper":
    size = max(int((sentence != 0).sum()), 1)
    return np.where(j <= WORDS, (1 - j / size) - (k / d) * (1 - 2 * j / size), 1.0)
  return np.ones((WORDS + 1, d))


def plain_read(net, memory, question):
  """Logits of one question `[J]` over `memory`, a list of sentences, the most recent first."""
  tables = [np.array(t[...]) for t in net.tables]
  asked = tables[0] if net.asked is None else np.array(net.asked[...])
  out = tables[-1][: net.answers] if net.out is None else np.array(net.out[...])
  for table in (*tables, asked, out):
    table[0] = 0

  def embed(table, sentence, time=None):
    scale = weights(net, sentence)
    total = sum(scale[j] * table[sentence[j]] for j in range(WORDS))
    timed = net.temporal and time is not None
    return total + (scale[WORDS] * table[VOCAB + time - 1] if timed else 0)

  u = embed(asked, question)
  empty = np.zeros(DIM)
  for hop in range(net.hops):
    first, second = (hop, hop + 1) if net.tying == "adjacent" else (0, 1)
    m = [embed(tables[first], s, i + 1) for i, s in enumerate(memory)]
    c = [embed(tables[second], s, i + 1) for i, s in enumerate(memory)]
    if not net.mask_empty:
      m += [empty] * (net.slots - len(m))
      c += [empty] * (net.slots - len(c))
    scores = np.array([u @ m_i for m_i in m])
    p = scores if net.linear else np.exp(scores) / np.exp(scores).sum()
    o = sum((p_i * c_i for p_i, c_i in zip(p, c, strict=True)), empty)
    u = o + (u if net.carry is None else u @ np.array(net.carry[...]))
  return u @ out.T


@pytest.mark.parametrize("options", FORMS)
def test_reading_equals_the_plain_restatement(options):
  net = make(**options)
  items, question = sentences(2, 6), sentences(2, seed=1)
  valid = np.array([[1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1]], bool)  # 3 stored, and 5 in 4 slots
  state = write(net, jnp.asarray(items), net.init_state(2), jnp.asarray(valid))
  got = read(net, jnp.asarray(question), state)
  for b in range(2):
    memory = list(items[b][valid[b]][::-1][:SLOTS])
    np.testing.assert_allclose(got[b], plain_read(net, memory, question[b]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.sentences[b, : len(memory)], memory)


@pytest.mark.parametrize("options", FORMS[:2])
def test_a_call_asks_each_sentence_and_then_stores_it(options):
  net, length = make(**options), 9
  x, rng = sentences(2, length), np.random.default_rng(2)
  question, valid = rng.random((2, length)) < 0.3, rng.random((2, length)) < 0.8
  reset = rng.random((2, length)) < 0.2
  context = Context(tokens={"question": jnp.asarray(question)})
  y, state = run(net, jnp.asarray(x), net.init_state(2), reset, valid, context)
  for b in range(2):
    memory = []
    for t in range(length):
      memory = [] if reset[b, t] else memory
      if not valid[b, t]:
        continue
      np.testing.assert_allclose(y[b, t], plain_read(net, memory, x[b, t]), rtol=1e-4, atol=1e-5)
      memory = memory if question[b, t] else [x[b, t], *memory][:SLOTS]
    assert state.count[b] == len(memory)
    np.testing.assert_array_equal(
      state.sentences[b, : len(memory)], np.reshape(memory, (-1, WORDS))
    )


def test_a_long_call_equals_short_ones():
  net, x = make(), jnp.asarray(sentences(1, 70))
  whole, last = run(net, x, net.init_state(1))
  first, state = run(net, x[:, :35], net.init_state(1))
  second, state = run(net, x[:, 35:], state)
  np.testing.assert_allclose(whole, jnp.concatenate([first, second], 1), rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(last.sentences, state.sentences)


def test_a_strong_question_reads_the_matching_row_alone():
  options = {"words": 1, "hops": 1, "position": None, "temporal": False, "slots": SLOTS}
  net = EndToEndMemoryNetwork(VOCAB, VOCAB, **options, rngs=nnx.Rngs(0))
  net.tables[0][...] = 10 * jnp.eye(VOCAB)
  state = write(net, jnp.asarray([[[3], [7], [5]]]), net.init_state(1))
  c = net.tables[1][...].at[0].set(0)
  expected = (10 * jnp.eye(VOCAB)[7] + c[7]) @ c.T
  np.testing.assert_allclose(
    read(net, jnp.asarray([[7]]), state)[0], expected, rtol=1e-4, atol=1e-4
  )


def test_order_counts_only_through_the_times():
  net, order = make(), np.array([2, 0, 3, 1])
  items, question = jnp.asarray(sentences(1, SLOTS)), jnp.asarray(sentences(1, seed=1))
  encoded, asked = net.encode(items), net._question(question)
  count, times = jnp.asarray([SLOTS]), jnp.arange(1, SLOTS + 1)[None]
  expected = net._answer(asked, encoded, count, times)
  together = net._answer(asked, encoded[:, order], count, times[:, order])
  apart = net._answer(asked, encoded[:, order], count, times)
  np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)
  assert jnp.abs(apart - expected).max() > 1e-3


def test_adjacent_hops_share_their_tables():
  net = make(hops=3)
  assert [t.shape for t in split(net)[0].values()] == [(VOCAB + SLOTS, DIM)] * 4
  items = jnp.asarray(sentences(1, 3))
  before = net.encode(items)
  net.tables[1][...] += 1.0  # C of hop 1, and A of hop 2
  changed = jnp.abs(net.encode(items) - before).max(axis=(0, 1, 3)) > 0
  np.testing.assert_array_equal(changed, [False, True, False, False])
  assert len(split(make(tying="layerwise"))[0]) == 5  # A, C, B, H, Wo


@pytest.mark.parametrize("tying", ["adjacent", "layerwise"])
def test_the_padding_word_is_zero_and_stays_so(tying):
  net = make(tying=tying)
  items, question = jnp.asarray(sentences(2, 3)), jnp.asarray(sentences(2, seed=1))

  @jax.jit
  @jax.grad
  def loss(net):
    logits = read(net, question, write(net, items, net.init_state(2)))
    return jnp.sum(jax.nn.log_softmax(logits)[:, 1])

  for name, grad in split(loss(net))[0].items():
    assert jnp.abs(grad[1:]).max() > 0, name
    if name != "carry":
      assert (grad[0] == 0).all(), name
  np.testing.assert_array_equal(net.encode(jnp.zeros((1, WORDS), jnp.int32)), 0)


def test_empty_slots_change_nothing_when_masked():
  items, question = jnp.asarray(sentences(2, 3)), jnp.asarray(sentences(2, seed=1))
  logits = {}
  for mask in (True, False):
    for slots in (SLOTS, 7):
      net = make(slots=slots, mask_empty=mask)
      for table in net.tables:
        table[...] = jnp.linspace(-1, 1, (VOCAB + 7) * DIM).reshape(-1, DIM)[: VOCAB + slots]
      logits[mask, slots] = read(net, question, write(net, items, net.init_state(2)))
  np.testing.assert_allclose(logits[True, SLOTS], logits[True, 7], rtol=1e-5, atol=1e-6)
  assert jnp.abs(logits[False, SLOTS] - logits[False, 7]).max() > 1e-3


def test_both_phases_of_a_linear_start_share_parameters():
  soft = make(hops=1)
  linear = replace(soft, linear=True)
  for a, b in zip(split(soft)[0].values(), split(linear)[0].values(), strict=True):
    np.testing.assert_array_equal(a, b)
  item, question = jnp.asarray(sentences(1, 1)), jnp.asarray(sentences(1, seed=1))
  state = write(soft, item, soft.init_state(1))
  u, times = soft._question(question), jnp.ones((1, 1), jnp.int32)
  m, c = (soft.encode(item) + soft._when(times))[0, 0]
  out = soft.tables[-1][...].at[0].set(0)[:VOCAB].T
  np.testing.assert_allclose(read(soft, question, state)[0], (u[0] + c) @ out, rtol=1e-4, atol=1e-5)
  expected = (u[0] + (u[0] @ m) * c) @ out
  np.testing.assert_allclose(read(linear, question, state)[0], expected, rtol=1e-4, atol=1e-5)


def test_noise_spreads_the_times_and_only_with_a_key():
  net = make(slots=20, noise=0.3)
  count = jnp.tile(jnp.asarray([[0], [3], [20]]), (1, 50))
  times = np.asarray(net._times(count, Context(key=jax.random.key(0))))
  exact = np.asarray(net._times(count, Context()))
  np.testing.assert_array_equal(exact, np.broadcast_to(np.arange(1, 21), exact.shape))
  few, full = times[1, :, :3], times[2]
  assert (np.diff(few) > 0).all() and few.min() == 1 and few.max() == 4  # at most ceil(0.9) gaps
  assert (np.diff(full) >= 0).all() and full.min() >= 1 and full.max() == 20
  assert (few[:, -1] == 3).any() and len(np.unique(full, axis=0)) > 10


def test_noise_changes_answers_only_with_a_key():
  net = make(noise=0.5)
  items, question = jnp.asarray(sentences(1, 4)), jnp.asarray(sentences(1, seed=1))
  state = write(net, items, net.init_state(1))
  exact = read(net, question, state)
  noisy = [read(net, question, state, Context(key=jax.random.key(i))) for i in range(4)]
  assert max(float(jnp.abs(n - exact).max()) for n in noisy) > 1e-4


def test_a_question_to_an_empty_memory_is_finite():
  net, question = make(), jnp.asarray(sentences(2))
  grads = jax.grad(lambda net: read(net, question, net.init_state(2)).sum())(net)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("bad", [VOCAB, -1])
def test_an_id_out_of_range_is_nan_where_it_is_read(bad):
  net, items = make(), jnp.asarray(sentences(2, 2)).at[0, 1, 0].set(bad)
  y, state = run(net, items, net.init_state(2))
  after = read(net, items[:, 0], state)
  assert jnp.isfinite(y[:, 0]).all() and jnp.isnan(y[0, 1]).all()
  assert jnp.isnan(after[0]).all() and jnp.isfinite(after[1]).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hops": 0}, "hops=0"),
    ({"tying": "none"}, "tying='none' is not one of"),
    ({"position": "sinus"}, "position='sinus' is not one of"),
    ({"noise": 1.0}, "noise=1.0"),
    ({"answers": VOCAB + SLOTS + 1}, "answers=14 exceeds the 13 rows"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_bad_sentences_are_named():
  net = make()
  with pytest.raises(TypeError, match=r"float32\[2, 1, 3\].*ids \[B, T, words=3\]"):
    net(jnp.zeros((2, 1, 3)), net.init_state(2))
  with pytest.raises(ValueError, match=r"words=3"):
    net(jnp.zeros((2, 1, 4), jnp.int32), net.init_state(2))
  with pytest.raises(ValueError, match=r"ids \[B, words=3\]"):
    net.read(jnp.zeros((2, 1, 3), jnp.int32), net.init_state(2))
  with pytest.raises(ValueError, match="state was made for batch 3"):
    net(jnp.zeros((2, 1, 3), jnp.int32), net.init_state(3))
  with pytest.raises(ValueError, match="question"):
    tokens = {"question": jnp.zeros((2, 2), bool)}
    net(jnp.zeros((2, 1, 3), jnp.int32), net.init_state(2), context=Context(tokens=tokens))
