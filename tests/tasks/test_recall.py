"""What the recall tasks separate: memories as short numpy loops that must solve or fail them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks.mqar import MQAR
from memjax.tasks.mqar_variants import CompositionalMQAR, ContinuousMQAR
from memjax.tasks.needle import MARK
from memjax.tasks.task import TRAIN
from memjax.tasks.tmaze import LEFT, RIGHT, TMaze, success
from tests.registry.tasks import SMALL
from tests.tasks.test_generated import first, many

PAIRS = 32


def recall(batch, keys, values, rule):
  """Accuracy of a matrix written with keys `[ids, d]` and read as the nearest of `values`."""
  right = []
  for ids, due in zip(batch.inputs, batch.targets, strict=True):
    memory = np.zeros((keys.shape[1], values.shape[1]), np.float32)
    for key, value in ids[: 2 * PAIRS].reshape(-1, 2):
      k = keys[key]
      erased = k @ memory if rule == "delta" else 0
      memory += np.outer(k, values[value] - erased)
    at = due >= 0
    right.append((keys[ids[at]] @ memory @ values.T).argmax(axis=1) == due[at])
  return np.mean(right)


def test_mqar_asks_for_as_many_dimensions_as_pairs():
  task = MQAR(pairs=PAIRS, length=4 * PAIRS, vocab=256, power=1.0)
  batch = jax.tree.map(np.asarray, jax.jit(lambda: task.sample(0, TRAIN, jnp.arange(10)))())
  for ids, due in zip(batch.inputs, batch.targets, strict=True):  # exact attention, one-hot keys
    at = due >= 0
    logits = 50.0 * (ids[at][:, None] == ids[None, : 2 * PAIRS : 2])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    seen = np.eye(256)[ids[1 : 2 * PAIRS : 2]]
    assert ((weights @ seen).argmax(axis=1) == due[at]).all()
  eye = np.eye(256, dtype=np.float32)
  assert recall(batch, eye[:128, :128], eye, "delta") == 1.0
  random = np.random.default_rng(0)
  found = {}
  for d in (8, 16, 64):
    ids = random.normal(size=(256, d)).astype(np.float32)
    ids /= np.linalg.norm(ids, axis=1, keepdims=True)
    crosstalk = (ids @ ids.T)[~np.eye(256, dtype=bool)].std()
    np.testing.assert_allclose(crosstalk, d**-0.5, rtol=0.05)
    found[d] = [recall(batch, ids, ids, rule) for rule in ("sum", "delta")]
  sums, deltas = np.asarray(list(found.values())).T
  for accs in (sums, deltas):  # half as many dimensions as pairs are too few, twice as many enough
    assert accs[0] < 0.2 and accs[1] < 0.6 and accs[2] > 0.98


def convolution(name):
  """Accuracy on new examples of the best fixed convolution of one-hot inputs."""
  task = SMALL[name]
  batch = many(task, 1200)
  length, size = batch.inputs.shape[1], task.vocab
  hot = np.eye(size)[batch.inputs]
  rows, due = [], []
  for t in range(length - task.data, length):
    lags = np.zeros((len(hot), length, size))
    lags[:, : t + 1] = hot[:, t::-1]  # by distance
    rows.append(lags.reshape(len(hot), -1))
    due.append(batch.targets[:, t])
  rows, due = np.stack(rows, axis=1), np.stack(due, axis=1)
  train, test = rows[:900].reshape(-1, length * size), rows[900:].reshape(-1, length * size)
  weights = np.linalg.lstsq(train, np.eye(size)[due[:900].reshape(-1)], rcond=None)[0]
  return np.mean((test @ weights).argmax(axis=1) == due[900:].reshape(-1))


def test_a_fixed_convolution_copies_but_does_not_select():
  assert convolution("copying") == 1.0
  assert convolution("selective-copying") < 0.5  # below 0.3 at the paper's sizes


def test_a_memory_that_only_adds_answers_any_of_a_keys_values():
  task = SMALL["interference"]
  batch = many(task, 400)
  random, place = np.random.default_rng(0), []
  told = 2 * task.keys * task.updates
  for ids, due in zip(batch.inputs, batch.targets, strict=True):
    memory = random.uniform(0, 1e-3, (task.vocab, task.vocab))  # ties break anyhow
    last = {}
    for key, value in ids[:told].reshape(-1, 2):
      memory[key, value] += 1
      last[key] = value
    for key, answer in zip(ids[told + 1 :: 2], due[told + 1 :: 2], strict=True):
      history = ids[1:told:2][ids[:told:2] == key].tolist()
      assert len(set(history)) == task.updates and last[key] == answer  # who overwrites is right
      place.append(history.index(memory[key].argmax()))
  counts = np.bincount(place, minlength=task.updates)
  assert np.abs(counts - len(place) / task.updates).max() < 4 * (len(place) * 0.25 * 0.75) ** 0.5


def test_an_asked_needle_is_told_once_and_the_special_id_once():
  task = SMALL["needles"]
  for ids, mask in zip(*map(np.asarray, (first(task).inputs, first(task).mask)), strict=True):
    told = ids[: task.told]
    keys = told[np.flatnonzero(told == MARK) + 1]
    assert len(set(keys.tolist())) == len(keys) == task.needles
    asked = ids[np.flatnonzero(mask)]
    assert all((told == key).sum() == 1 for key in asked) and len(set(asked.tolist())) == 2
  task = SMALL["induction"]
  assert (np.asarray(first(task).inputs == task.vocab - 1).sum(axis=1) == 2).all()


def test_the_maze_is_decided_by_the_hint_alone():
  task = TMaze(length=9)
  index = jnp.arange(600)

  def run(task):
    batch = task.sample(0, TRAIN, index)
    wrong = dataclasses.replace(batch, inputs=batch.inputs.at[:, :, 1].multiply(-1))
    return (
      batch,
      success(task.solve(wrong), batch),
      success(task.solve(task.closed_book(batch)), batch),
    )

  batch, wrong, shut = jax.jit(run, static_argnums=0)(task)
  assert not wrong.any() and np.mean(shut) == 0.5
  noise, hint = np.asarray(batch.inputs[:, :, 3]).astype(int), np.asarray(batch.meta["hint"])
  joint = np.zeros((2, 3))
  np.add.at(joint, (np.repeat(hint > 0, 9).astype(int), noise.reshape(-1) + 1), 1 / noise.size)
  even = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
  bits = np.sum(joint * np.log2(joint / even))
  assert bits < 8 / noise.size  # 2 N ln 2 bits is chi-squared of 2 degrees: above 11 once in 250

  active = jax.tree.map(np.asarray, first(TMaze(length=9, active=True)))
  assert (active.inputs[:, 0, 1] == 0).all() and (np.abs(active.inputs[:, 1, 1]) == 1).all()
  assert (active.targets[:, 0] == LEFT).all() and (active.targets[:, 1:-1] == RIGHT).all()
  np.testing.assert_array_equal(active.inputs[:, 1, 1] > 0, active.targets[:, -1] == 1)


def test_a_key_may_be_asked_again():
  task = MQAR(pairs=3, length=32, vocab=32, repeats=2)
  batch = jax.tree.map(np.asarray, first(task))
  for ids, due in zip(batch.inputs, batch.targets, strict=True):
    at = np.flatnonzero(due >= 0)
    told = dict(ids[:6].reshape(3, 2).tolist())
    assert sorted(ids[at].tolist()) == sorted(2 * list(told))
    assert [told[k] for k in ids[at].tolist()] == due[at].tolist()


def test_neither_part_of_a_compositional_key_tells_the_value():
  task = CompositionalMQAR(grid=3, length=60, vocab=99)
  batch = jax.tree.map(np.asarray, jax.jit(lambda: task.sample(0, TRAIN, jnp.arange(40)))())
  told = 3 * task.keys
  for ids, due in zip(batch.inputs, batch.targets, strict=True):
    triples = ids[:told].reshape(-1, 3)
    pairs = {(first, second): value for first, second, value in triples}
    assert len(pairs) == 9 and len(set(pairs.values())) == 9
    at = np.flatnonzero(due >= 0)
    assert sorted(due[at]) == sorted(pairs.values())  # each key is asked once
    for place in at:
      assert pairs[ids[place - 1], ids[place]] == due[place]
      for part, asked in ((0, ids[place - 1]), (1, ids[place])):
        assert np.sum(triples[:, part] == asked) == 3  # values that this part leaves open
    fill = np.delete(ids[told:], np.concatenate([at, at - 1]) - told)
    assert not set(fill) & set(triples[:, :2].ravel())


def test_a_continuous_pair_takes_a_dimension():
  """A matrix of keys and values, without an error where it may invert the keys, has room for as
  many pairs as a key has numbers; a plain sum of outer products is never without errors."""
  for pairs, solved in ((8, True), (16, False)):
    task = ContinuousMQAR(pairs=pairs, length=3 * pairs, key_dim=8, bits=8, power=1.0)
    batch = jax.tree.map(
      np.asarray, jax.jit(lambda task=task: task.sample(0, TRAIN, jnp.arange(60)))()
    )
    inverted, summed = [], []
    for frames, due, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True):
      keys, values = frames[:pairs, :8], frames[:pairs, 8:]
      asked = frames[mask][:, :8]
      inverted.append(((asked @ np.linalg.pinv(keys) @ values > 0) == due[mask]).mean())
      summed.append(((asked @ keys.T @ values > 0) == due[mask]).mean())
    assert (np.mean(inverted) > 0.999) == solved
    assert task.floor < np.mean(summed) < 0.99


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: CompositionalMQAR(grid=3, length=53), "length=53 must be at least 54"),
    (lambda: CompositionalMQAR(grid=2, vocab=100), "vocab=100 must be a multiple of 3"),
    (lambda: CompositionalMQAR(grid=3, vocab=27), "vocab=27 .* at least 30"),
    (lambda: ContinuousMQAR(pairs=5, length=9), "length=9 must be at least 10"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
