"""Documents cut into batches: batch k is a function of k, so a position in the data is one number.

Shapes: B rows of a batch over all processes (b in this one), T tokens of a row, N documents.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from memjax.data.cache import Tokens
from memjax.data.packing import Packing

Batch = dict[str, np.ndarray]


class Layout:
  """Documents laid end to end, each padded to a multiple of `align`: which token is where.

  Args:
    starts: [N + 1] int64. Where documents begin in the array of tokens, and its length.
    order: [N] int64. The documents in the order in which they are laid.
    align: padding, 1 for none.
    max_tokens: only the first so many tokens (padding is not counted).

  Attributes:
    size: places.   padding: the share of them that hold nothing.
  """

  def __init__(
    self, starts: np.ndarray, order: np.ndarray, align: int, max_tokens: int | None = None
  ):
    self.first, self.last = starts[order], starts[order + 1] - 1
    self.after = np.roll(self.first, -1)  # what follows the last token of each document
    lengths = starts[order + 1] - starts[order]
    if max_tokens is not None:
      before = np.cumsum(lengths) - lengths
      self.lengths = np.clip(max_tokens - before, 0, lengths)
      self.lengths = self.lengths[self.lengths > 0]
    else:
      self.lengths = lengths
    padded = -(-self.lengths // align) * align
    self.begins = np.cumsum(padded) - padded
    self.size = int(padded.sum())
    self.padding = 1 - int(self.lengths.sum()) / self.size

  def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For places [...], of that shape: where the token stands, and the one that follows it;
    is it a document's first; is it a token at all."""
    document = np.searchsorted(self.begins, places, side="right") - 1
    offset = places - self.begins[document]
    valid = offset < self.lengths[document]
    token = np.where(valid, self.first[document] + offset, 0)
    following = np.where(token == self.last[document], self.after[document], token + 1)
    return token, following, offset == 0, valid


class Cut(Sequence[Batch]):
  """The batches of one split, by number; in `len` of them every token stands once.

  Args:
    data: the split.
    seed: shuffles, in another order each pass, and without end; None: one pass in fixed order.
    sequence_length, batch_size, stream, pack, separator, align, shard_index, shard_count,
      max_tokens: see `memjax.data`.
  """

  def __init__(
    self,
    data: Tokens,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int | None,
    stream: bool,
    align: int | None,
    shard_index: int,
    shard_count: int,
    max_tokens: int | None = None,
    pack: bool = False,
    separator: int | None = None,
  ):
    _check(sequence_length, batch_size, seed, align, shard_index, shard_count, max_tokens)
    _check_pack(pack, separator, stream)
    self._data, self._length, self._batch = data, sequence_length, batch_size
    self._seed, self._stream, self._align = seed, stream, align or 1
    self._lanes = np.arange(batch_size).reshape(shard_count, -1)[shard_index]
    self._order = np.arange(len(data.starts) - 1)
    self._separator = separator
    self._layout: Layout | Packing
    if pack:
      self._layout = Packing(data.starts, sequence_length, self._align, separator is not None)
    else:
      self._layout = Layout(data.starts, self._order, self._align, max_tokens)
    self._rows = -(-self._layout.size // sequence_length)
    self._len = -(-self._rows // batch_size)
    self._known: tuple[int, Any] = (-1, None)  # the last epoch asked for, and its order

  @property
  def padding(self) -> float:
    """The share of places that hold no token, the last row's end not counted."""
    return self._layout.padding

  def __len__(self) -> int:
    return self._len

  def __getitem__(self, k: int) -> Batch:
    if self._seed is None and not 0 <= k < len(self):
      raise IndexError(f"batch {k} of {len(self)}")
    layout, begins = self._stream_rows(k) if self._stream else self._separate_rows(k)
    token, following, reset, valid = layout(begins[:, None] + np.arange(self._length))
    if not self._stream or k % len(self) == 0:
      reset[:, 0] = valid[:, 0]
    tokens = self._data.tokens
    targets = np.where(following < 0, self._separator or 0, tokens[following].astype(np.int64))
    return {
      "inputs": np.where(valid, tokens[token], 0).astype(np.int32),
      "targets": np.where(valid, targets, 0).astype(np.int32),
      "reset": reset,
      "valid": valid,
    }

  def _separate_rows(self, k: int) -> tuple[Layout | Packing, np.ndarray]:
    rows = k * self._batch + self._lanes
    if self._seed is not None:  # the last batch of an epoch ends with rows of the next
      epochs, rows = np.divmod(rows, self._rows)
      for epoch in np.unique(epochs):
        rows[epochs == epoch] = self._shuffle(int(epoch))[rows[epochs == epoch]]
    return self._layout, rows * self._length

  def _stream_rows(self, k: int) -> tuple[Layout | Packing, np.ndarray]:
    epoch, step = divmod(k, len(self))
    layout = self._layout if self._seed is None else self._shuffle(epoch)
    return layout, (self._lanes * len(self) + step) * self._length

  def _shuffle(self, epoch: int) -> Any:
    """The documents laid out for an epoch (`stream`), or its permutation of the rows."""
    known, order = self._known
    if known != epoch:
      order = np.random.default_rng([self._seed or 0, epoch])
      order = order.permutation(len(self._order) if self._stream else self._rows)
      if self._stream:
        order = Layout(self._data.starts, order, self._align)
      self._known = (epoch, order)
    return order


def _check(sequence_length, batch_size, seed, align, shard_index, shard_count, max_tokens) -> None:
  sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "shard_count": shard_count}
  for name, value in sizes.items():
    if value < 1:
      raise ValueError(f"{name}={value} must be at least 1")
  if max_tokens is not None and max_tokens < 1:
    raise ValueError(f"max_tokens={max_tokens} must be at least 1, or None for all")
  if seed is not None and not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed} must be in [0, 2**32)")
  if align is not None and (align < 1 or sequence_length % align):
    raise ValueError(f"align={align} must divide sequence_length={sequence_length}")
  if not 0 <= shard_index < shard_count:
    raise ValueError(f"shard_index={shard_index} must be in [0, shard_count={shard_count})")
  if batch_size % shard_count:
    raise ValueError(
      f"batch_size={batch_size}, the rows of all processes, must be a multiple of "
      f"shard_count={shard_count}"
    )


def _check_pack(pack, separator, stream) -> None:
  if pack and stream:
    raise ValueError("pack=True starts every row anew, stream=True carries rows on: choose one")
  if separator is not None and not pack:
    raise ValueError(f"separator={separator} is read with pack=True only")


class TrainBatches:
  """Endless batches from Grain, one or two read ahead by a thread.

  Attributes:
    batches_per_epoch: batches in which every token stands once.
    padding: the share of places that hold no token.
  """

  def __init__(self, cut: Cut, settings: dict[str, Any]):
    import grain

    self.batches_per_epoch, self.padding = len(cut), cut.padding
    self._settings = settings
    dataset = grain.MapDataset.range(sys.maxsize).map(cut.__getitem__)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    self._iterator = iter(dataset.to_iter_dataset(reading))

  def __iter__(self) -> "TrainBatches":
    return self

  def __next__(self) -> Batch:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """The number of the next batch, and all that decides what is in it; plain values."""
    return {"next_batch": self._iterator.get_state()["next_index"], **self._settings}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to the position of `state`.

    Raises:
      ValueError: it was taken from other text, or from the same text cut in another way.
    """
    names = sorted({*self._settings, *state} - {"next_batch"})
    differ = [
      name for name in names if name not in state or self._settings.get(name) != state[name]
    ]
    if differ or "next_batch" not in state:
      pairs = ", ".join(
        f"{name}={state.get(name)!r} then, {self._settings.get(name)!r} now" for name in differ
      )
      raise ValueError(
        f"this position belongs to other data ({pairs or 'next_batch is missing'}): continue with "
        "the text and the settings it was saved with, or start anew"
      )
    self._iterator.set_state({"next_index": state["next_batch"]})

  def close(self) -> None:
    """Ends the thread that reads ahead."""
    self._iterator.close()
