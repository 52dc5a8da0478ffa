"""The loss of a language model: what is carried, what is added, what a key switches on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memjax.core import Memory, Replay, Stateless, as_state, channel, join, leaf, param, scan, split
from memjax.training import (
  evaluate,
  init_train_state,
  language_model_loss,
  make_eval_step,
  make_train_step,
)
from memjax.transformer import LanguageModel, Stack

DIM, VOCAB = 4, 5


@as_state
class Sum:
  total: jax.Array = leaf("memory")


class Adder(Memory):
  """Adds up what it sees, from a learned start; emits a loss once a call."""

  def __init__(self, dim: int, *, rngs: nnx.Rngs):
    self.start = param(rngs, nnx.initializers.ones, (dim,), axes=("memory",))

  def init_state(self, batch):
    return Sum(jnp.tile(self.start[...], (batch, 1)))

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    channel.emit("small_loss", jnp.float32(0.25))
    channel.emit("loss_of_nothing", jnp.float32(9))

    def step(x, state, context):
      total = state.total + x
      return jnp.tanh(total), Sum(total)

    return scan(step, x, state, init=self.init_state(x.shape[0]), reset=reset, valid=valid)


class Places(Memory):
  """Adds the positions that it is given to its input."""

  def init_state(self, batch):
    return Stateless()

  def __call__(self, x, state, *, reset=None, valid=None, context=None):
    return x + context.tokens["positions"][..., None], state


def test_positions_of_a_batch_reach_the_model():
  model = LanguageModel(VOCAB, DIM, body=lambda dim, rngs: Places(), rngs=nnx.Rngs(0))
  part = {name: array for name, array in batch().items() if name in ("inputs", "targets")}
  loss = language_model_loss()
  total = lambda **extra: float(loss(model, Stateless(), {**part, **extra}, None).total)  # noqa: E731
  same = total(positions=jnp.zeros((2, 6), jnp.int32))
  assert total(positions=jnp.ones((2, 6), jnp.int32)) != same
  key = jax.random.key(0)
  out = loss(model, Stateless(), {**part, "positions": jnp.zeros((2, 6), jnp.int32)}, key)
  assert float(out.total) == pytest.approx(same)


@jax.jit
def adding_model():
  body = functools.partial(Stack, pattern=[Adder], repeats=2, dropout=0.5)
  return LanguageModel(VOCAB, DIM, body=body, rngs=nnx.Rngs(0))


def batch(rows: int = 2, length: int = 6, seed: int = 0):
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
  valid, reset = np.ones((2, rows, length), bool)
  valid[0, 4:] = False
  reset[:, 1:] = False
  return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "valid": valid, "reset": reset}


def parts(whole, size: int):
  length = whole["inputs"].shape[1]
  cut = [{k: v[:, t : t + size] for k, v in whole.items()} for t in range(0, length, size)]
  return cut


@functools.cache
def eval_step(carry: bool):
  return make_eval_step(language_model_loss(carry=carry))


def state_of(model, memory=None):
  return init_train_state(model, optax.sgd(0.1), key=jax.random.key(0), memory=memory)


def test_losses_that_are_emitted_are_added_for_every_token():
  model, one = adding_model(), batch()
  sums = eval_step(False)(state_of(model), Stateless(), one)[1]
  assert sums["count"] == 10
  # Two layers in one scan emit two values.
  np.testing.assert_allclose(sums["loss"], sums["nats"] + 10 * 2 * 0.25, rtol=1e-6)
  np.testing.assert_allclose(sums["auxiliary_loss"], 10 * 2 * 0.25, rtol=1e-6)


def test_evaluation_counts_every_token_once():
  """The mean over uneven batches is the mean over all tokens, whatever the batches."""
  state, whole = state_of(adding_model()), batch(rows=3)
  together = evaluate(eval_step(False), state, [whole])
  rows = [{k: v[r : r + 1] for k, v in whole.items()} for r in range(3)]
  apart = evaluate(eval_step(False), state, rows)
  assert together["count"] == apart["count"] == 16
  assert together["nats"] == pytest.approx(apart["nats"], rel=1e-6)
  assert together["loss"] == pytest.approx(together["nats"] + 0.5, rel=1e-6)


def test_evaluation_without_a_token_is_refused():
  empty = batch()
  empty["valid"][:] = False
  with pytest.raises(ValueError, match="no token"):
    evaluate(eval_step(False), state_of(adding_model()), [empty])


def test_a_carried_state_makes_parts_equal_to_the_whole():
  state, whole = state_of(adding_model()), batch()
  together = evaluate(eval_step(False), state, [whole])
  carried = evaluate(eval_step(True), state, parts(whole, 2), carry=True)
  anew = evaluate(eval_step(False), state, parts(whole, 2))
  assert carried["nats"] == pytest.approx(together["nats"], rel=1e-5)
  assert abs(anew["nats"] - together["nats"]) > 1e-3


def test_training_carries_the_state_and_stops_its_gradient():
  """Only a reset lets the loss reach the learned start; without carry every row does."""
  model, (one, two) = adding_model(), parts(batch(), 3)
  optimizer = optax.sgd(0.1)
  for carry, moves in ((True, False), (False, True)):
    state = state_of(model, model.init_state(2) if carry else None)
    step = make_train_step(language_model_loss(carry=carry), optimizer)
    state, _ = step(state, one)  # resets at its first token
    names = [name for name in state.params if name.endswith("start")]
    before = np.array(state.params[names[0]])
    state, _ = step(state, two)
    assert (not np.array_equal(before, state.params[names[0]])) == moves


def test_a_key_switches_dropout_on():
  model, loss_fn, one = adding_model(), language_model_loss(), batch()

  @jax.jit
  def loss(seed):
    return loss_fn(model, Stateless(), one, jax.random.key(seed)).total

  still = jax.jit(lambda: loss_fn(model, Stateless(), one, None).total)()
  assert loss(0) == loss(0) != loss(1) != still


def test_flags_may_be_missing():
  one = {name: batch()[name] for name in ("inputs", "targets")}
  sums = eval_step(False)(state_of(adding_model()), Stateless(), one)[1]
  assert sums["count"] == 12 and jnp.isfinite(sums["loss"])


def test_in_chunks_of_the_vocabulary_it_is_the_same_loss_function():
  model, rest = split(adding_model())

  def gradient(chunk):
    loss_fn = language_model_loss(chunk=chunk)

    def loss(model):
      out = loss_fn(join(model, rest), Stateless(), batch(), None)
      return out.total, out.metrics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(model)

  got, want = gradient(4), gradient(None)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)
  with pytest.raises(ValueError, match="chunk=0"):
    language_model_loss(chunk=0)


@pytest.mark.parametrize("carry", [False, True])
def test_by_segments_it_is_the_same_loss_function(carry):
  """Loss, gradient through the carried state, and last state are those of one call."""
  model, rest = split(adding_model())
  memory = join(model, rest).init_state(2) if carry else Stateless()

  def gradient(segment, replay):
    loss_fn = language_model_loss(carry=carry, segment=segment, replay=replay)

    def loss(model):
      out = loss_fn(join(model, rest), memory, batch(), None)
      return out.metrics["nats"] * out.count, (out.count, out.memory)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(model)

  want = gradient(None, None)
  for replay in (None, Replay(), Replay(every=2)):
    got = gradient(2, replay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)


def test_each_segment_has_dropout_and_auxiliary_losses_of_its_own():
  model, loss_fn = adding_model(), language_model_loss(segment=3)
  run = jax.jit(lambda key: loss_fn(model, Stateless(), batch(), key))
  still, moved = run(None), run(jax.random.key(0))
  assert still.metrics["auxiliary_loss"] == pytest.approx(2 * 2 * 0.25)  # layers, segments
  assert moved.total != still.total and moved.total == run(jax.random.key(0)).total
  with pytest.raises(ValueError, match="segment=4 does not divide the T=6"):
    language_model_loss(segment=4)(model, Stateless(), batch(), None)
  with pytest.raises(ValueError, match="segment=0"):
    language_model_loss(segment=0)


def test_memory_by_segments_does_not_grow_with_the_length():
  """But for ids and the states between segments, here a few kilobytes."""

  def temporaries(length, segment):
    body = functools.partial(Stack, pattern=[Adder])
    model = LanguageModel(VOCAB, 64, body=body, rngs=nnx.Rngs(0))
    loss_fn = language_model_loss(segment=segment)
    params, rest = split(model)

    def loss(params, batch):
      return loss_fn(join(params, rest), Stateless(), batch, None).total

    step = jax.jit(jax.grad(loss)).lower(params, batch(length=length))
    return step.compile().memory_analysis().temp_size_in_bytes

  whole = temporaries(1024, None) - temporaries(256, None)
  cut = temporaries(1024, 32) - temporaries(256, 32)
  assert cut < whole / 10
