"""Documents of numbered tokens (token i is i), so that a batch shows what was put where."""

import itertools
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from memjax.data.batches import Cut, TrainBatches
from memjax.data.cache import Tokens
from memjax.data.corpus import Corpus
from memjax.data.tokenizer import ByteTokenizer

LENGTHS = [5, 1, 12, 8, 3, 20, 4, 7]  # 60 tokens
MODES = [
  pytest.param({"stream": stream, "align": align}, id=f"stream={stream},align={align}")
  for stream, align in itertools.product((False, True), (None, 4))
]


def numbered(lengths=LENGTHS):
  starts = np.cumsum([0, *lengths])
  return Tokens(np.arange(starts[-1], dtype=np.uint16), starts, int(starts[-1]))


def corpus(lengths=LENGTHS, fingerprint="numbered"):
  return Corpus(
    ByteTokenizer(), fingerprint, {"train": numbered(lengths), "validation": numbered(lengths)}
  )


def take(batches, n):
  return [next(batches) for _ in range(n)]


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)
      assert batch[name].dtype == other[name].dtype


def rows_of_epoch(batches, cut, size, stream, length):
  """[rows, T] arrays of the first epoch; shuffled rows of the next may share its last batch."""
  rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
  return rows if stream else {name: value[: -(-size // length)] for name, value in rows.items()}


def assert_epoch(rows, lengths, stream, align):
  """Every token an input once and a target once, followed by what follows it in its text."""
  count = sum(lengths)
  starts = set(np.cumsum([0, *lengths[:-1]]).tolist())
  inputs, targets = rows["inputs"], rows["targets"]
  reset, valid = rows["reset"], rows["valid"]
  assert sorted(inputs[valid]) == sorted(targets[valid]) == list(range(count))
  assert not inputs[~valid].any() and not targets[~valid].any() and not reset[~valid].any()
  for row, at in zip(*np.nonzero(valid), strict=True):
    token, target = inputs[row, at], targets[row, at]
    assert target in starts if (token + 1) % count in starts else target == token + 1
    if token in starts:
      assert reset[row, at]
    elif at:
      assert not reset[row, at]
      assert valid[row, at - 1] and targets[row, at - 1] == token
    elif not stream:
      assert reset[row, 0]
    if align and reset[row, at]:
      assert at % align == 0


@hypothesis.given(
  lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
  length=st.integers(1, 4),
  batch_size=st.integers(1, 5),
  align=st.sampled_from([None, 2, 3]),
  stream=st.booleans(),
  seed=st.sampled_from([None, 0, 2**32 - 1]),
)
def test_every_token_once_an_epoch(lengths, length, batch_size, align, stream, seed):
  length *= align or 1
  cut = Cut(
    numbered(lengths),
    sequence_length=length,
    batch_size=batch_size,
    seed=seed,
    stream=stream,
    align=align,
    shard_index=0,
    shard_count=1,
  )
  batches = [cut[k] for k in range(len(cut))]
  size = sum(-(-n // (align or 1)) * (align or 1) for n in lengths)
  rows = rows_of_epoch(batches, cut, size, stream, length)
  if seed is None and not stream:
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in rows}
    assert (np.diff(rows["inputs"][rows["valid"]]) == 1).all()  # in order
  assert_epoch(rows, lengths, stream, align)


def test_shapes_and_dtypes():
  batches = corpus().train_batches(8, 4)
  batch = next(batches)
  batches.close()
  assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
    "inputs": ((4, 8), "int32"),
    "targets": ((4, 8), "int32"),
    "reset": ((4, 8), "bool"),
    "valid": ((4, 8), "bool"),
  }


@pytest.mark.parametrize("align", [None, 4])
def test_a_stream_goes_on_in_the_next_batch(align):
  lengths = [30, 2, 41, 9, 17]
  batches = corpus(lengths).train_batches(8, 2, stream=True, align=align)
  epoch = take(batches, batches.batches_per_epoch)
  assert len(epoch) > 5
  again = next(batches)
  assert again["reset"][:, 0].all()  # the next epoch is another text
  batches.close()
  assert epoch[0]["reset"][:, 0].all()
  starts = np.cumsum([0, *lengths])[:-1]
  for before, after in itertools.pairwise(epoch):
    for b in range(2):
      if not after["valid"][b].any():
        continue
      last = before["targets"][b][before["valid"][b]][-1]
      assert after["inputs"][b, 0] == last
      assert after["reset"][b, 0] == (last in starts)


@pytest.mark.parametrize("stream", [False, True])
def test_the_seed_decides_and_epochs_differ(stream):
  def epochs(seed):
    batches = corpus().train_batches(6, 2, seed=seed, stream=stream)  # 10 rows: 5 batches
    two = take(batches, 2 * batches.batches_per_epoch)
    batches.close()
    tokens = np.stack([batch["inputs"] for batch in two])
    return np.split(tokens, 2)

  first, second = epochs(1)
  np.testing.assert_array_equal(first, epochs(1)[0])
  np.testing.assert_array_equal(second, epochs(1)[1])
  assert not np.array_equal(first, second)
  assert not np.array_equal(first, epochs(2)[0])
  assert sorted(first.ravel()) == sorted(second.ravel()) == list(range(60))


@pytest.mark.parametrize("mode", MODES)
def test_resuming_is_exact(mode):
  text = corpus()
  batches = text.train_batches(8, 3, seed=7, **mode)
  expected = take(batches, 12)  # more than two epochs
  batches.close()
  assert batches.batches_per_epoch < 6
  for stop in (0, 1, 5, 9):
    batches = text.train_batches(8, 3, seed=7, **mode)
    take(batches, stop)
    position = json.loads(json.dumps(batches.get_state()))
    take(batches, 2)  # a position is taken, not followed
    batches.set_state(position)
    assert_equal(take(batches, 3), expected[stop : stop + 3])
    batches.close()
    fresh = text.train_batches(8, 3, seed=7, **mode)
    fresh.set_state(position)
    assert fresh.get_state() == position
    assert_equal(take(fresh, 3), expected[stop : stop + 3])
    fresh.close()


def test_a_position_of_other_data_is_refused():
  position = corpus().train_batches(8, 2, seed=1).get_state()
  for other, names in (
    (corpus().train_batches(8, 2, seed=2), "seed=1 then, 2 now"),
    (corpus().train_batches(4, 2, seed=1), "sequence_length=8 then, 4 now"),
    (corpus(fingerprint="b").train_batches(8, 2, seed=1), "corpus='numbered' then, 'b' now"),
    (corpus().train_batches(8, 2, seed=1, stream=True), "stream=False then, True now"),
  ):
    with pytest.raises(ValueError, match=names):
      other.set_state(position)
  with pytest.raises(ValueError, match="next_batch is missing"):
    batches = corpus().train_batches(8, 2, seed=1)
    batches.set_state({name: value for name, value in position.items() if name != "next_batch"})


@pytest.mark.parametrize("mode", MODES)
def test_processes_share_a_batch_and_its_position(mode):
  text = corpus()

  def read(index, count, position=None):
    batches = text.train_batches(4, 6, seed=3, shard_index=index, shard_count=count, **mode)
    if position:
      batches.set_state(position)
    taken = take(batches, 5)
    position = batches.get_state()
    batches.close()
    return taken, position

  whole, position = read(0, 1)
  further, _ = read(0, 1, position)
  for count in (2, 3):
    parts, positions = zip(*(read(index, count) for index in range(count)), strict=True)
    joined = [
      {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
      for batch in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)
    assert all(other == position for other in positions)
    assert_equal(read(0, count, position)[0], [_first_rows(batch, 6 // count) for batch in further])


def _first_rows(batch, rows):
  return {name: value[:rows] for name, value in batch.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_tokens", [None, 1, 23, 26, 60, 1000])
def test_evaluation_counts_every_token_once(mode, max_tokens):
  batches = corpus().evaluation_batches(8, 3, max_tokens=max_tokens, **mode)
  count = min(max_tokens or 60, 60)
  tokens = [batch["inputs"][batch["valid"]] for batch in batches]
  targets = [batch["targets"][batch["valid"]] for batch in batches]
  assert sorted(np.concatenate(tokens)) == list(range(count))
  assert sorted(np.concatenate(targets)) == sorted((i + 1) % 60 for i in range(count))
  assert len(tokens) == len(batches)
  assert all(batch["inputs"].shape == (3, 8) for batch in batches)
  assert_equal(
    list(batches), list(corpus().evaluation_batches(8, 3, max_tokens=max_tokens, **mode))
  )


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_gives_processes_equally_many_batches(mode):
  whole = list(corpus().evaluation_batches(4, 4, **mode))
  parts = [
    corpus().evaluation_batches(4, 4, shard_index=i, shard_count=4, **mode) for i in range(4)
  ]
  joined = [
    {name: np.concatenate([part[k][name] for part in parts]) for name in whole[0]}
    for k in range(len(parts[0]))
  ]
  assert_equal(joined, whole)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"sequence_length": 0}, "sequence_length=0 must be at least 1"),
    ({"batch_size": -1}, "batch_size=-1 must be at least 1"),
    ({"align": 3}, "align=3 must divide sequence_length=8"),
    ({"align": 0}, "align=0 must divide"),
    ({"seed": -1}, r"seed=-1 must be in \[0, 2\*\*32\)"),
    ({"shard_count": 3}, "batch_size=4, .* must be a multiple of shard_count=3"),
    ({"shard_index": 2, "shard_count": 2}, r"shard_index=2 must be in \[0, shard_count=2\)"),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(ValueError, match=message):
    corpus().train_batches(**{"sequence_length": 8, "batch_size": 4, **settings})


def test_evaluation_settings_that_cannot_be():
  with pytest.raises(ValueError, match="max_tokens=0 must be at least 1"):
    corpus().evaluation_batches(8, 4, max_tokens=0)
  with pytest.raises(ValueError, match="split='test' must be one of train, validation"):
    corpus().evaluation_batches(8, 4, split="test")
  with pytest.raises(IndexError):
    corpus().evaluation_batches(8, 4)[2]


def test_an_endless_iterator():
  batches = corpus([3]).train_batches(8, 2)  # less text than one row
  assert isinstance(batches, TrainBatches) and iter(batches) is batches
  for batch in take(batches, 4):
    assert batch["valid"].sum(1).tolist() == [3, 3]
  batches.close()
