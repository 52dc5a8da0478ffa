"""Documents in rows of one length: whole ones, packed closely (`Packing`), or joined end to end
(`pack`, UltraLong's way, arXiv 2504.06214)."""

import bisect
from collections.abc import Sequence

import numpy as np


def best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Puts pieces into rows of `length` places: each, from the largest to the smallest, into the row
  whose free space it fills best, or into a new one (best-fit packing, arXiv 2404.10830).

  Args:
    sizes: `[N]` int, each in 1..length.
    length: places of a row.

  Returns:
    row: `[N]` int64, the row of every piece.   begin: `[N]` int64, its first place in the row.
  """
  row, begin = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
  rows: dict[int, list[int]] = {}  # free places -> the rows that have so many
  free: list[int] = []  # the keys of `rows`, sorted
  count = 0
  for piece in np.argsort(-sizes, kind="stable").tolist():
    size = int(sizes[piece])
    i = bisect.bisect_left(free, size)
    if i == len(free):
      space, row[piece], count = length, count, count + 1
    else:
      space = free[i]
      row[piece] = rows[space].pop()
      if not rows[space]:
        del rows[space], free[i]
    begin[piece], left = length - space, space - size
    if left:
      if left not in rows:
        rows[left] = []
        bisect.insort(free, left)
      rows[left].append(int(row[piece]))
  return row, begin


class Packing:
  """Whole documents in rows of `length` places: which token is where.

  A document of n tokens is n - 1 pairs of a token and the one that follows, or n where a separator
  follows its last token. Longer ones than a row are cut into rows and a rest. No pair spans two
  documents, so nothing is learned about what happens to follow.

  Args:
    starts: `[N + 1]` int64. Where documents begin in the array of tokens, and its length.
    length: places of a row.
    align: documents begin at multiples of it, 1 for anywhere; it divides `length`.
    separated: a separator follows each document; its place is -1.

  Attributes:
    size: places, rows times `length`.
    padding: the share of places that hold nothing.

  Raises:
    ValueError: no document has a pair.
  """

  def __init__(self, starts: np.ndarray, length: int, align: int, separated: bool):
    pairs = np.diff(starts) - (not separated)
    pieces = -(-pairs // length)
    document = np.repeat(np.arange(len(pairs)), pieces)
    if not len(document):
      raise ValueError("no document has two tokens: there is nothing to predict")
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    lengths = np.minimum(pairs[document] - number * length, length)
    row, begin = best_fit(-(-lengths // align) * align, length)
    order = np.argsort(row * length + begin)
    self.begins = (row * length + begin)[order]
    self.first = (starts[document] + number * length)[order]
    self.last = (starts[document + 1] - 1)[order]  # of the document
    self.lengths = lengths[order]
    self.size = (int(row.max()) + 1) * length
    self.padding = 1 - int(lengths.sum()) / self.size

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For places [...], of that shape: where the token stands, and the one that follows it;
    is it the first of a document (or of the rest of one); is it a token at all."""
    piece = np.searchsorted(self.begins, places, side="right") - 1
    offset = places - self.begins[piece]
    valid = offset < self.lengths[piece]
    token = np.where(valid, self.first[piece] + offset, 0)
    following = np.where(valid & (token == self.last[piece]), -1, token + valid)
    return token, following, offset == 0, valid


def pack(
  documents: Sequence[np.ndarray], length: int, *, separator: int | None = None, mask: str = "none"
) -> dict[str, np.ndarray]:
  """Documents joined end to end and cut into rows of `length` tokens.

  Args:
    documents: arrays `[n]` of ids, none empty.
    length: T.
    separator: id that is put between two documents; None: nothing is. It belongs to the document
      before it, which learns to end; it should not be an id that text holds.
    mask: "none", tokens see the documents before theirs in the row and positions run on
      (UltraLong); "segment", no token sees another document, positions start anew with each, and
      no token learns the first of the next.

  Returns:
    `inputs`, `targets` `[R, T]` int32, `reset`, `valid` `[R, T]` bool as in `memjax.data` (valid is
    the loss's mask as well), and `positions` `[R, T]` int32, tokens since the last reset. The last
    row is padded.

  Raises:
    ValueError: an argument is out of range, a document is empty, or there is nothing to predict.
  """
  if mask not in ("none", "segment"):
    raise ValueError(f"mask={mask!r} must be 'none' or 'segment'")
  if length < 1:
    raise ValueError(f"length={length} must be at least 1")
  if separator is not None and separator < 0:
    raise ValueError(f"separator={separator} must be an id >= 0, or None")
  empty = [i for i, document in enumerate(documents) if not len(document)]
  if empty:
    raise ValueError(f"documents {empty[:5]} hold no tokens: leave them out")
  sizes = np.asarray([len(document) for document in documents], np.int64)
  if separator is not None:
    sizes[:-1] += 1
  if sizes.sum() < 2:
    raise ValueError("documents hold fewer than two tokens: there is nothing to predict")
  end = [] if separator is None else [separator]
  joined = np.concatenate([np.concatenate([document, end]) for document in documents])
  joined = joined[: sizes.sum()].astype(np.int32)  # no separator at the end
  owner = np.repeat(np.arange(len(documents)), sizes)

  rows = -(-(len(joined) - 1) // length)
  shape, places = (rows, length), np.arange(rows * length)
  valid = places < len(joined) - 1
  at = np.minimum(places, len(joined) - 2)
  reset = places % length == 0
  if mask == "segment":
    reset = reset | (owner[at] != owner[np.maximum(at - 1, 0)])
    valid = valid & (owner[at] == owner[at + 1])
  reset = reset & valid  # a document of one token predicts nothing and is left out
  since = places - np.maximum.accumulate(np.where(reset, places, 0))
  arrays = {
    "inputs": np.where(valid, joined[at], 0),
    "targets": np.where(valid, joined[at + 1], 0),
    "reset": reset,
    "valid": valid,
    "positions": np.where(valid, since, 0).astype(np.int32),
  }
  return {name: array.reshape(shape) for name, array in arrays.items()}


def resample(
  lengths: np.ndarray, *, seed: int, short: int, keep: float, long: int, repeat: float
) -> np.ndarray:
  """Which documents to pack for long contexts: fewer short ones, more long ones (UltraLong takes
  short = 4096, long = 8192 tokens; its rates are not published).

  Args:
    lengths: `[N]` tokens of each document.
    seed: of the draw.
    short: documents below it are kept `keep` times in the mean.
    long: documents above it are taken `repeat` times in the mean.

  Returns:
    `[M]` int64, numbers of documents, rising, some repeated.
  """
  if not 0 <= keep <= 1 or not repeat >= 1 or short > long:
    raise ValueError(
      f"keep={keep} must lie in [0, 1], repeat={repeat} be at least 1, short={short} be at most "
      f"long={long}"
    )
  mean = np.where(lengths < short, keep, np.where(lengths > long, repeat, 1.0))
  copies = np.floor(mean + np.random.default_rng(seed).random(len(lengths)))
  return np.repeat(np.arange(len(lengths)), copies.astype(np.int64))
