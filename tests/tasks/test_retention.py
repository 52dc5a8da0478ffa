"""Retention after injection, of two memories whose law is known: the newest M contexts, and slots
that are replaced at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import retention
from memjax.tasks.fact_contexts import FactContexts
from memjax.tasks.task import TEST, Batch
from memjax.tasks.triples import newest

TASK = FactContexts(facts=2, subjects=200, relations=8, objects=50)
B, T, SLOTS, REPLACED, KEPT = 400, 8, 12, 3, 3


@pytest.fixture(scope="module")
def stream():
  parts = retention.split_off(TASK, jax.jit(lambda i: TASK.sample(0, TEST, i))(jnp.arange(B + T)))
  return jax.tree.map(lambda x: x[:B], parts), parts.context[B:]


def empty(slots, batch=B):
  return jnp.zeros((batch, slots, TASK.told), jnp.int32), jnp.int32(0)


def ring(state, tokens):
  """Keeps the newest contexts, in the place of the oldest."""
  slots, written = state
  return slots.at[:, written % slots.shape[1]].set(tokens), written + 1


def replacing(state, tokens):
  """Puts a context into one of REPLACED random slots, and empties the others."""
  slots, written = state
  noise = jax.random.uniform(jax.random.fold_in(jax.random.key(1), written), slots.shape[:2])
  order = jnp.argsort(jnp.argsort(noise))[..., None]
  new = jnp.where(order == 0, tokens[:, None], 0)
  return jnp.where(order < REPLACED, new, slots), written + 1


def ask(state, question):
  """The fact of the asked pair, wherever it lies."""
  slots = state[0].reshape(len(question), -1)
  return jax.vmap(newest)(slots, question)[:, 0]


@functools.cache
def measured(write, slots, before):
  """Hits of `retention.curve`, compiled for any order of the others."""
  run = functools.partial(retention.curve, write, ask, before=before)
  return jax.jit(lambda parts, others: run(empty(slots), parts, others))


def test_a_ring_buffer_is_a_step(stream):
  parts, others = stream
  hits = measured(ring, KEPT, 0)(parts, others)
  law = retention.oldest_first(np.arange(T + 1), KEPT)
  np.testing.assert_array_equal(hits, np.broadcast_to(law[:, None] == 1, (T + 1, B)))
  late = measured(ring, KEPT, T - 1)(parts, others)  # the own context is the last but one
  assert late.shape == (2, B) and late.all()
  assert retention.area(np.mean(hits, axis=1)) == KEPT
  run = jax.jit(lambda: retention.baseline(ring, ask, empty(KEPT), parts, others[:2]))
  nothing = run()
  assert not nothing.any()


def test_random_replacement_is_exponential_and_blind_to_the_order(stream):
  parts, others = stream
  run = measured(replacing, SLOTS, 0)
  hits = np.asarray(run(parts, others))
  law = retention.random_replacement(np.arange(T + 1), SLOTS, REPLACED)
  sigma = np.sqrt(law * (1 - law) / B)
  assert (np.abs(hits.mean(axis=1) - law) <= 2 * sigma).all()
  half = retention.half_life(hits.mean(axis=1))
  assert half == pytest.approx(np.log(0.5) / np.log(1 - REPLACED / SLOTS), rel=0.1)
  np.testing.assert_array_equal(run(parts, others[::-1]), hits)


def test_all_are_told_then_all_are_asked(stream):
  parts = jax.tree.map(lambda x: x[:6], stream[0])
  found = jax.jit(lambda: retention.held(ring, ask, empty(KEPT, batch=1), parts))()
  np.testing.assert_array_equal(found, [True] * KEPT + [False] * 3)


def test_the_newest_fact_stays_known_however_many_were_told():
  def make(number):  # one fact of two samples
    pair = 2 * number + jnp.arange(2)
    tell = lambda pair: TASK.words.facts(pair[None], pair[None] % 7)  # noqa: E731
    ask = lambda pair: TASK.words.questions(pair[None])  # noqa: E731
    answer = TASK.words.value(pair, pair % 7)
    return retention.Parts(jax.vmap(tell)(pair), jax.vmap(ask)(pair), answer)

  def run(limit):  # a memory that stops to write
    def write(state, tokens):
      slots, written = state
      new = slots.at[:, written % KEPT].set(tokens)
      return jnp.where(written < limit, new, slots), written + 1

    start = jnp.zeros((2, KEPT, 4), jnp.int32), jnp.int32(0)
    return retention.integrity(write, ask, start, make, 100, 10)

  run = jax.jit(run)
  assert run(100).all() and run(100).shape == (10, 2)
  np.testing.assert_array_equal(run(40).all(axis=1), [True] * 4 + [False] * 6)


def test_contexts_share_no_question(stream):
  facts = np.asarray(jnp.concatenate([stream[0].context, stream[1]])).reshape(-1, 4)
  assert len({tuple(pair) for pair in facts[:, :2].tolist()}) == 2 * (B + T)


def test_laws_and_measures():
  t = np.arange(61)
  law = retention.random_replacement(t, 7680, 256, start=0.9, floor=0.1)
  assert law[0] == 0.9 and law[30] == pytest.approx(0.1 + 0.8 * (29 / 30) ** 30)
  half = np.log(0.5) / np.log(29 / 30)
  assert retention.half_life(law, floor=0.1) == pytest.approx(half, rel=0.01)
  more = retention.spilled(t, 7680, 256, 2560, start=0.9, floor=0.1)
  assert (more[:11] == 0.9).all() and more[40] == law[30]
  assert retention.half_life(np.ones(9)) == float("inf")
  assert retention.half_life(np.full(9, 0.1), floor=0.1) == 0
  assert retention.area(law[:1], floor=0.1) == pytest.approx(0.8 / 0.9)


def test_mistakes_are_named(stream):
  parts, others = stream
  with pytest.raises(ValueError, match=r"before=9 must lie in 0\.\.8"):
    retention.curve(ring, ask, empty(1), parts, others, before=9)
  with pytest.raises(ValueError, match=r"every=5 must lie in 1\.\.writes=4"):
    retention.integrity(ring, ask, empty(1), lambda _: parts, 4, 5)
  several = Batch(parts.context, parts.context, parts.context > 0, parts.answer, {})
  with pytest.raises(ValueError, match="must ask one question"):
    retention.split_off(TASK, several)
  with pytest.raises(ValueError, match="no tokens that are `told`"):
    retention.split_off(None, several)
  with pytest.raises(ValueError, match="facts=9 must not exceed 8 pairs"):
    FactContexts(facts=9, subjects=4, relations=2)
