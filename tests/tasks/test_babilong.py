"""BABILong: statements between sentences of text, at a cost that does not depend on the length."""

import collections
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.tasks import babi, background
from memjax.tasks.babi_text import solve
from memjax.tasks.babi_words import MOVES, QUESTIONS, lexicon
from memjax.tasks.babilong import BABILong, grid
from memjax.tasks.task import TEST, TRAIN
from tests.registry.tasks.babi import SMALL

TASK = SMALL["babilong"]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden/tasks/babilong.json"
COUNT = 200
WORDS = lexicon("words", 4, 3, 6)


def parts(task, ids):
  """The statements of an example, as words, and what is left without them and the question."""
  first, things, _ = task.lexicon.first
  verbs = {task.lexicon.ids[verb.split()[0]] for verb in MOVES}
  verbs |= {
    task.lexicon.ids[w] for w in "got took grabbed picked dropped left discarded put".split()
  }
  told, left, t = [], [], 0
  ids = list(ids[: len(ids) - task.asked])
  while t < len(ids):
    if first <= ids[t] < things and t + 1 < len(ids) and ids[t + 1] in verbs:
      end = ids.index(task.lexicon.ids["."], t)
      told.append((len(left), tuple(task.lexicon.words[i - 1] for i in ids[t:end])))
      t = end + 1
    else:
      left.append(ids[t])
      t += 1
  return told, left


def test_statements_stand_in_the_text_as_they_should():
  """Of examples made in pieces: they are those of the golden file, and without the text they are a
  bAbI example, without the statements the text; gaps are as likely everywhere."""
  size = TASK.length // 4
  make = jax.jit(lambda start: TASK.chunk(0, TRAIN, jnp.arange(COUNT), start, size))
  made = [make(start) for start in range(0, TASK.length, size)]
  inputs = np.concatenate([part.inputs for part in made], axis=1)
  targets = np.concatenate([part.targets for part in made], axis=1)
  golden = json.loads(GOLDEN.read_text())
  assert golden == {"inputs": inputs[:2].tolist(), "targets": targets[:2].tolist()}
  assert inputs.min() > 0  # the budget is met

  text = background.load(TASK.text, TASK.words, TASK.lexicon, TASK.overlap)
  twice = np.concatenate([text.ids, text.ids[: TASK.length]])
  bounds = set(text.starts.tolist())
  begins = collections.defaultdict(list)
  for start in bounds:
    begins[tuple(twice[start : start + 5])].append(start)
  depth = []
  for row in range(COUNT):
    told, left = parts(TASK, inputs[row])
    assert len(told) == made[0].meta["statements"][row]
    question = tuple(TASK.lexicon.words[i - 1] for i in inputs[row, -TASK.asked : -1])
    example = babi.Example(tuple(words for _, words in told), question, "", ())
    answer, _ = solve(example)
    assert TASK.lexicon.ids[str(answer)] == targets[row, -1]
    at = [b for b in begins[tuple(left[:5])] if np.array_equal(twice[b : b + len(left)], left)]
    gaps = [gap for gap, _ in told]
    assert gaps == sorted(gaps)
    assert all((at[0] + gap) % len(text.ids) in bounds or gap == len(left) for gap in gaps)
    if len(left) > 100:  # sentences, of up to 40 ids, do not end where deciles do
      depth += [gap / len(left) for gap in gaps]
  assert np.mean(depth) == pytest.approx(0.5, abs=0.04)


def test_gaps_are_even_in_their_window():
  task = BABILong(length=20_000, text="grammar", words=40, statements=10, window=(20, 80))
  live = jnp.ones(10, bool)
  draw = jax.jit(jax.vmap(lambda key: task._gaps(key, jnp.int32(15_000), live)[0]))
  found = np.asarray(draw(jax.random.split(jax.random.key(1), COUNT)))
  assert (np.diff(found, axis=1) >= 0).all()
  assert found.min() >= 3000 and found.max() < 12_000 + 60  # the next gap
  counts = np.histogram(found, 10, (3000, 12_000 + 20))[0]
  assert np.sum((counts - COUNT) ** 2 / COUNT) < 27.9  # chi-square of 9 degrees, 1 in 1,000


def largest(jaxpr):
  """The most elements that an array within has."""
  found = [0]
  for equation in jaxpr.eqns:
    found += [getattr(v.aval, "size", 0) for v in equation.outvars]
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          found.append(largest(inner))
  return max(found)


def test_a_stretch_of_a_long_text_takes_no_more_than_its_own_arrays():
  task = BABILong(length=2_000_000, text="grammar", words=40, statements=10)
  make = lambda start: task.chunk(0, TRAIN, jnp.arange(1), start, 64)  # noqa: E731
  assert largest(jax.make_jaxpr(make)(1_000_000).jaxpr) < 200_000  # the text itself: 100,000


@pytest.mark.slow
def test_a_million_ids():
  task = BABILong(task=2, length=1_000_000)
  make = jax.jit(lambda start: task.chunk(0, TEST, jnp.arange(1), start, 1000))
  jax.block_until_ready(make(0))

  def seconds(start):
    begin = time.process_time()
    jax.block_until_ready(make(start))
    return time.process_time() - begin

  near, far = (min(seconds(start) for _ in range(20)) for start in (0, 999_000))
  assert far < 2 * near + 0.001
  whole = jax.jit(lambda: task.sample(0, TEST, jnp.arange(1)))()
  for start in (0, 500_000, 999_000):
    np.testing.assert_array_equal(make(start).inputs[0], whole.inputs[0, start : start + 1000])
  np.testing.assert_array_equal(jax.jit(task.solve)(whole), whole.targets)


def test_text_of_files(tmp_path):
  sentence = "the knights of {} never told anyone where the mary stone was ."
  (tmp_path / "a.txt").write_text("Too short. " + sentence.format("oslo").capitalize())
  (tmp_path / "b.txt").write_text(sentence.format("rome") + " Open")
  text = background.load(str(tmp_path / "*.txt"), 3, WORDS)
  assert text.starts.tolist() == [0, 13] and len(text.ids) == 26
  one, unknown = text.ids[:13].tolist(), WORDS.size
  known = {0: "the", 7: "where", 8: "the", 11: "was", 12: "."}
  assert {i: one[i] for i in known} == {i: WORDS.ids[word] for i, word in known.items()}
  assert [one[i] for i in (1, 2, 4)] == [unknown + 1, unknown + 2, unknown + 3]
  assert one[3] == one[9] == one[10] == unknown  # mary is a name of the lexicon, the others rare
  with pytest.raises(FileNotFoundError, match="is no file; it may be 'docstrings'"):
    background.load(str(tmp_path / "c.txt"), 3, WORDS)
  (tmp_path / "c.txt").write_text("Too short.")
  with pytest.raises(ValueError, match="has no sentence of 10 to 60 words"):
    background.load(str(tmp_path / "c.txt"), 3, WORDS)


def test_other_persons_move_in_the_text():
  plain, mixed = (background.load("grammar", 40, WORDS, share) for share in (0.0, 0.2))
  extra = len(mixed.starts) - len(plain.starts)
  assert extra / len(mixed.starts) == pytest.approx(0.2, abs=0.02)
  lengths = np.diff(mixed.starts)
  moves = np.stack([mixed.ids[s : s + 6] for s in mixed.starts[:-1][lengths == 6]])
  assert len(moves) in (extra, extra - 1)
  persons, places = collections.Counter(moves[:, 0].tolist()), set(moves[:, 4].tolist())
  assert len(persons) == 12 and min(persons) > WORDS.size
  assert places == set(range(WORDS.first[2], WORDS.size))


def test_docstrings_are_text():
  text = background.load("docstrings", 2000, WORDS)
  assert len(text.ids) > 100_000 and np.mean(text.ids == WORDS.size) < 0.2
  assert not np.isin(text.ids, np.arange(WORDS.first[0], WORDS.size)).any()


def test_a_table_of_tasks_and_lengths():
  table = grid((1, 3), (256, 512), text="grammar")
  assert list(table) == [(1, 256), (1, 512), (3, 256), (3, 512)]
  assert table[3, 512].length == 512 and table[3, 512].world.most == 64
  assert [table[1, 512].asked, table[3, 512].asked] == [len(QUESTIONS[t].split()) for t in (0, 2)]


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: BABILong(length=100, statements=20), "length=100 must be at least 160"),
    (lambda: BABILong(window=(60, 40)), r"window=\(60, 40\) must be two percents"),
    (lambda: BABILong(overlap=1.0), r"overlap=1.0 must lie in \[0, 1\)"),
    (lambda: BABILong(task=5), "task=5 is not one of 1, 2, 3"),
  ],
)
def test_what_does_not_fit_is_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
