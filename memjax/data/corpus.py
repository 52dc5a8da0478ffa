"""`load` says which text, `Corpus` cuts it into batches."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from memjax.data import cache, sources, tfds_sets
from memjax.data.batches import Batch, Cut, TrainBatches
from memjax.data.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Tokenised text in two splits, mapped from disk. Made by `load`.

  Attributes:
    tokenizer: encodes and decodes.
    fingerprint: of tokens and documents' borders; equal wherever the same text was prepared.
    splits: "train" and "validation".
  """

  tokenizer: Tokenizer
  fingerprint: str
  splits: dict[str, cache.Tokens]

  @property
  def vocab_size(self) -> int:
    """All tokens are below it."""
    return self.tokenizer.vocab_size

  @property
  def num_tokens(self) -> dict[str, int]:
    """Tokens of each split."""
    return {name: len(split.tokens) for name, split in self.splits.items()}

  @property
  def num_bytes(self) -> dict[str, int]:
    """Bytes of each split's text."""
    return {name: split.num_bytes for name, split in self.splits.items()}

  def train_batches(
    self,
    sequence_length: int,
    batch_size: int,
    *,
    seed: int = 0,
    stream: bool = False,
    pack: bool = False,
    separator: int | None = None,
    align: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
  ) -> TrainBatches:
    """Endless shuffled batches of the training split; arguments and batches: see `memjax.data`.

    Raises:
      ValueError: sizes below 1, `align` that does not divide `sequence_length`, `shard_count` that
        does not divide `batch_size`, `pack` with `stream`, or a `separator` that is no id.
    """
    settings: dict[str, Any] = dict(
      sequence_length=sequence_length, batch_size=batch_size, seed=seed, stream=stream, align=align
    )
    if separator is not None and not 0 <= separator < self.vocab_size:
      raise ValueError(
        f"separator={separator} is no id of the tokenizer, whose ids are below {self.vocab_size}"
      )
    if pack or separator is not None:
      settings |= {"pack": pack, "separator": separator}
    cut = Cut(self.splits["train"], shard_index=shard_index, shard_count=shard_count, **settings)
    return TrainBatches(cut, {"corpus": self.fingerprint, **settings})

  def evaluation_batches(
    self,
    sequence_length: int,
    batch_size: int,
    *,
    split: str = "validation",
    max_tokens: int | None = None,
    stream: bool = False,
    align: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
  ) -> Sequence[Batch]:
    """One pass over a split, or its first `max_tokens`, in fixed order; the last batch is padded.

    Each process gets equally many batches.

    Raises:
      ValueError: as `train_batches`; a `split` or `max_tokens` that there is not.
    """
    if split not in self.splits:
      raise ValueError(f"split={split!r} must be one of {', '.join(self.splits)}")
    return Cut(
      self.splits[split],
      sequence_length=sequence_length,
      batch_size=batch_size,
      seed=None,
      stream=stream,
      align=align,
      shard_index=shard_index,
      shard_count=shard_count,
      max_tokens=max_tokens,
    )


def load(
  source: str = "stdlib",
  *,
  path: str | os.PathLike[str] | None = None,
  name: str | None = None,
  tokenizer: str | os.PathLike[str] | None = None,
  encoding_errors: str = "strict",
  limit_bytes: int | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> Corpus:
  """Reads and tokenises text the first time, and maps it from the cache after that.

  Several processes may do so at once: one prepares, the others wait. A changed file is noticed
  by its size and time. Strings that are "" count as None, as in an unset configuration.

  Args:
    source: "stdlib", the source of the running Python's standard library, a twentieth of the
      files for validation; "text", the files that match `path`, likewise, or the last tenth of
      a single file; "tfds", the TFDS set `name`, with its validation or test split, or a
      twentieth of the examples.
    path: for "text", a file or a pattern such as "books/**/*.txt"; for "tfds", the folder of
      prepared sets, None for TFDS's own.
    name: for "tfds", such as "lm1b" or "wikipedia/20230601.en"; needs a feature `text`.
    tokenizer: a JSON file of the `tokenizers` library; None for bytes.
    encoding_errors: what to do with bytes that are not UTF-8: "strict" refuses the file,
      "replace" puts U+FFFD in their place.
    limit_bytes: only the first so many bytes of each split.
    cache_dir: where prepared text is kept; None for `$MEMJAX_CACHE`, or else the platform's
      folder for caches.
  Raises:
    ValueError: arguments that do not fit together; text that is empty or not UTF-8; a set or
      tokenizer that is unknown or of no use.
    FileNotFoundError: `path` matches nothing.
    OSError: a file that cannot be read, a cache that cannot be written, a full disk.
  """
  if encoding_errors not in sources.ERRORS:
    options = ", ".join(sources.ERRORS)
    raise ValueError(f"encoding_errors={encoding_errors!r} must be one of {options}")
  if limit_bytes is not None and limit_bytes < 1:
    raise ValueError(f"limit_bytes={limit_bytes} must be at least 1, or None for all")
  folder = pathlib.Path(cache_dir).expanduser() if cache_dir else cache.default_folder()
  text = _source(source, os.fspath(path or ""), name, encoding_errors, folder)
  encoder = load_tokenizer(tokenizer)

  def build(temporary: pathlib.Path) -> None:
    cache.write_tokens(temporary, text.documents(), encoder, limit_bytes)

  key = cache.key(cache.LAYOUT, text.identity, encoder.fingerprint, limit_bytes)
  prepared = cache.prepare(folder / f"tokens-{source}-{key}", build)
  fingerprint, splits = cache.read_tokens(prepared)
  return Corpus(encoder, fingerprint, splits)


def _source(
  source: str, path: str, name: str | None, errors: str, folder: pathlib.Path
) -> sources.Source:
  if source not in ("stdlib", "text", "tfds"):
    raise ValueError(f"source={source!r} must be 'stdlib', 'text' or 'tfds'")
  if name and source != "tfds":
    raise ValueError(f"name={name!r} is read with source='tfds' only, got source={source!r}")
  if source == "tfds":
    if not name:
      raise ValueError("source='tfds' needs name=, such as 'lm1b' or 'wikipedia/20230601.en'")
    return tfds_sets.tfds(name, path or None, errors, folder)
  if source == "text":
    if not path:
      raise ValueError("source='text' needs path=, a file or a pattern such as 'books/**/*.txt'")
    return sources.text_files(path, errors)
  if path:
    raise ValueError(f"path={path!r} is not read with source='stdlib': give source='text' with it")
  return tfds_sets.stdlib(folder)
